"""Products of up to 16 rows with columns of one block of exact weights, in bfloat16, by AMX: registers that hold tiles of 16
lines, and one instruction that multiplies two of them.

A tile of weights has 32 columns of 16 outputs. The instruction adds the products of even columns in order, those of odd columns in
order, and both to the sum, so a row's bits depend neither on the rows beside it nor on where columns are cut between tiles."""

import ctypes
import platform
from functools import cache
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .instructions import has
from .vector import BYTE, LONG, Code

# rows and columns of a tile
ROWS, COLUMNS = 16, 32
# arch_prctl(ASK, TILES) asks Linux to keep tile registers for this process; their numbers
ARCH_PRCTL, ASK, TILES = 158, 0x1023, 18
NOTHING = ir.VoidType()
# numbers of the registers: sums (four of 16 outputs each), rows of x, weights; and of the last two where columns are fewer
SUMS, X, WEIGHTS, LAST_X, LAST_WEIGHTS = range(4), 4, 5, 6, 7


@cache
def has_amx() -> bool:
    """Whether numba compiles for a machine that multiplies tiles of bfloat16, and the system lets this process."""
    if not has("amx-tile", "amx-bf16") or platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(ARCH_PRCTL, ASK, TILES)) == 0


@cache
def shapes(rows: int, columns: int) -> Any:
    """What `configure` reads: the registers' shapes for products of `rows` rows (at most ROWS) with matrices of `columns` columns
    (even). 64 bytes."""
    lines, widths = [0] * 16, [0] * 8
    last = columns % COLUMNS
    for register in SUMS:
        lines[register], widths[register] = rows, 64
    for register, (height, width) in {
        X: (rows, 64), WEIGHTS: (16, 64), LAST_X: (rows, last * 2), LAST_WEIGHTS: (last // 2, 64)
    }.items():  # fmt: skip
        if height and width:
            lines[register], widths[register] = height, width
    words = b"".join(width.to_bytes(2, "little") for width in (*widths, *[0] * 8))
    return (ctypes.c_uint8 * 64).from_buffer_copy(bytes([1, *[0] * 15]) + words + bytes(lines))


class _AmxDot(Code):
    """The code of one product."""

    def tile(self, register: int, address: Any, stride: Any) -> None:
        """Fill a register with lines `stride` bytes apart."""
        self.intrinsic("llvm.x86.tileloadd64", NOTHING, BYTE(register), self.pointer(address), stride)

    def give(self, register: int, address: Any, stride: Any) -> None:
        """Write a register to lines `stride` bytes apart."""
        self.intrinsic("llvm.x86.tilestored64", NOTHING, BYTE(register), self.pointer(address), stride)

    def pointer(self, address: Any) -> Any:
        return self.b.inttoptr(address, BYTE.as_pointer())

    def add(self, weights: Any, column: Any, x: Any, stride: Any, registers: tuple[int, int]) -> None:
        """Add the products of the columns of one tile, from `column` on, to the sums."""
        rows, lines = registers
        self.tile(rows, self.at(x, self.b.shl(column, LONG(1))), stride)
        here = self.at(weights, self.b.shl(column, LONG(7)))
        for v in SUMS:
            self.tile(lines, self.at(here, 64 * v), LONG(256))
            self.intrinsic("llvm.x86.tdpbf16ps", NOTHING, BYTE(v), BYTE(rows), BYTE(lines))

    def each(self, count: Any, weights: Any, x: Any, stride: Any) -> None:
        """`add` for the first `count` columns, a multiple of COLUMNS."""
        b, before = self.b, self.b.block
        body, done = b.append_basic_block("tiles"), b.append_basic_block("multiplied")
        b.cbranch(b.icmp_unsigned(">", count, LONG(0)), body, done)
        b.position_at_end(body)
        column = b.phi(LONG)
        column.add_incoming(LONG(0), before)
        self.add(weights, column, x, stride, (X, WEIGHTS))
        after = self.at(column, COLUMNS)
        column.add_incoming(after, b.block)
        b.cbranch(b.icmp_unsigned("<", after, count), body, done)
        b.position_at_end(done)


def _product(fresh: bool) -> Any:
    """Code for use in a kernel: sums (zeros, if `fresh`) += x @ weights.T for as many rows of x as the registers have, bfloat16,
    `stride` bytes apart, over `columns` columns of 64 weights at `weights`, paired; what is left of them after whole tiles is the
    matrix's last columns. `sums`: float32, 64 for each row, `pitch` bytes apart. All but the numbers are addresses."""

    @intrinsic
    def product(typing: Any, weights: Any, columns: Any, x: Any, stride: Any, sums: Any, pitch: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, columns, x, stride, sums, pitch = arguments
            code = _AmxDot(context, builder)
            for v in SUMS:
                if fresh:
                    code.intrinsic("llvm.x86.tilezero", NOTHING, BYTE(v))
                else:
                    code.tile(v, code.at(sums, 64 * v), pitch)
            whole = builder.and_(columns, LONG(-COLUMNS))
            code.each(whole, weights, x, stride)
            with builder.if_then(builder.icmp_unsigned("!=", whole, columns)):
                code.add(weights, whole, x, stride, (LAST_X, LAST_WEIGHTS))
            for v in SUMS:
                code.give(v, code.at(sums, 64 * v), pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return product


@intrinsic
def _configure(typing: Any, address: Any) -> Any:
    """Give this thread's registers the `shapes` at `address`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _AmxDot(context, builder)
        code.intrinsic("llvm.x86.ldtilecfg", NOTHING, code.pointer(arguments[0]))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _release(typing: Any) -> Any:
    """Give up this thread's registers, so that the system need not keep them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _AmxDot(context, builder).intrinsic("llvm.x86.tilerelease", NOTHING)
        return context.get_dummy_value()

    return types.void(), generate


amx_sums: Any = _product(fresh=False)
amx_products: Any = _product(fresh=True)
configure: Any = _configure
release: Any = _release
