"""Integer dot products of a few rows with a group of columns of one block of codes, as LLVM vector code.

Codes lie as `kernels.pack` says (4 bits) or one a byte (8 bits); activations are int8. With AVX-512 VNNI four columns of
sixteen rows are one instruction; elsewhere the same sums are made in float32, which holds them exactly (they stay below
2**24), so every machine gives the same bits."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numba
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

BYTE, WORD, LONG, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
WORDS, FLOATS = ir.VectorType(WORD, 16), ir.VectorType(FLOAT, 16)
CENTRE = {4: 8, 8: 128}  # the code that stands for the group's zero


def has_vnni() -> bool:
    """Whether numba compiles for a machine that multiplies bytes four at a time."""
    config: Any = numba.config
    forced = config.CPU_NAME or config.CPU_FEATURES
    features = binding.get_host_cpu_features()
    return not forced and bool(features.get("avx512vnni")) and bool(features.get("avx512bw"))


def group_dot(bits: int, rows: int, vnni: bool | None = None) -> Any:
    """Code for use in a kernel: add to `rows` times 64 float32 at `out` the products of `rows` rows of int8 at
    `x` (rows `stride` bytes apart) with `columns` columns (a multiple of 4) of the block's codes.

    `scales` holds a word a row, (scale, zero) in bfloat16; `steps`, for each row of x, the step of its int8 and the step
    times their sum, in float32. All but `columns` and `stride` are addresses."""

    @intrinsic
    def add_group(typing: Any, codes: Any, x: Any, stride: Any, columns: Any, scales: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            fast = has_vnni() if vnni is None else vnni
            write = _Writer(builder, bits, rows, *arguments)
            write.epilogue(write.sums(write.vnni_step, WORDS, 4) if fast else write.sums(write.plain_step, FLOATS, 1))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return add_group


class _Writer:
    """Writes the code of one `add_group` through `builder`."""

    def __init__(self, builder: Any, bits: int, rows: int, *arguments: Any) -> None:
        self.b, self.bits, self.rows = builder, bits, rows
        self.codes, self.x, self.stride, self.columns, self.scales, self.steps, self.out = arguments

    def load(self, address: Any, kind: Any, align: int = 1) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def at(self, address: Any, offset: Any) -> Any:
        return self.b.add(address, LONG(offset) if isinstance(offset, int) else offset)

    def spread(self, value: Any, count: int = 16) -> Any:
        kind = ir.VectorType(value.type, count)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
        zeros = ir.Constant(ir.VectorType(WORD, count), [0] * count)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

    def row(self, r: int, offset: Any) -> Any:
        """The address `offset` bytes into row r of x."""
        return self.at(self.at(self.x, self.b.mul(self.stride, LONG(r))), offset)

    def sums(self, step: Callable[[Any, list[list[Any]]], list[list[Any]]], kind: Any, width: int) -> list[list[Any]]:
        """The loop over columns, `width` at a time: for each row of x, four vectors of 16 sums, as `FLOATS`."""
        before = self.b.block
        loop, done = self.b.append_basic_block("columns"), self.b.append_basic_block("done")
        self.b.branch(loop)
        self.b.position_at_end(loop)
        column = self.b.phi(LONG)
        column.add_incoming(LONG(0), before)
        sums = [[self.b.phi(kind) for _ in range(4)] for _ in range(self.rows)]
        following = step(column, sums)
        last = self.b.block
        for phi, value in zip(chain(*sums), chain(*following), strict=True):
            phi.add_incoming(ir.Constant(kind, [0] * 16), before)
            phi.add_incoming(value, last)
        after = self.at(column, width)
        column.add_incoming(after, last)
        self.b.cbranch(self.b.icmp_unsigned("<", after, self.columns), loop, done)
        self.b.position_at_end(done)
        return [[self.b.sitofp(v, FLOATS) if kind is WORDS else v for v in line] for line in following]

    def vnni_step(self, column: Any, sums: list[list[Any]]) -> list[list[Any]]:
        name = "llvm.x86.avx512.vpdpbusd.512"
        known = self.b.module.globals.get(name)
        dot = known or ir.Function(self.b.module, ir.FunctionType(WORDS, [WORDS] * 3), name)
        quads = self.four_columns(self.at(self.codes, self.b.mul(column, LONG(8 * self.bits))))
        made = []
        for r, line in enumerate(sums):
            x = self.spread(self.load(self.row(r, column), WORD))
            made.append([self.b.call(dot, [total, quad, x]) for total, quad in zip(line, quads, strict=True)])
        return made

    def four_columns(self, address: Any) -> list[Any]:
        """The codes of four columns: word j of vector v holds those of row 16 v + j, a byte each."""
        pair = ir.VectorType(BYTE, 64)
        if self.bits == 8:
            runs = [self.load(self.at(address, 64 * t), pair) for t in range(4)]
            return [self.b.bitcast(self.byte_columns(runs, 16 * v), WORDS) for v in range(4)]
        low, high = self.load(address, pair), self.load(self.at(address, 64), pair)
        turned = []
        for first in (0, 16):
            order = [32 * t + first + j for j in range(16) for t in range(4)]
            turned.append(self.b.shuffle_vector(low, high, ir.Constant(ir.VectorType(WORD, 64), order)))
        nibble, four = ir.Constant(pair, [15] * 64), ir.Constant(pair, [4] * 64)
        quads = [self.b.and_(v, nibble) for v in turned] + [self.b.lshr(v, four) for v in turned]
        return [self.b.bitcast(v, WORDS) for v in quads]

    def byte_columns(self, runs: list[Any], first: int) -> Any:
        """16 rows of four runs of 64 bytes, turned: two runs at a time, then their pairs."""
        pairs = []
        for a, b in (runs[:2], runs[2:]):
            order = [64 * t + first + j for j in range(16) for t in range(2)]
            pairs.append(self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, 32), order)))
        order = [32 * t + 2 * j + u for j in range(16) for t in range(2) for u in range(2)]
        return self.b.shuffle_vector(*pairs, ir.Constant(ir.VectorType(WORD, 64), order))

    def plain_step(self, column: Any, sums: list[list[Any]]) -> list[list[Any]]:
        quarter = ir.VectorType(BYTE, 16)
        address = self.at(self.codes, self.b.mul(column, LONG(8 * self.bits)))
        codes = [self.load(self.at(address, 16 * v), quarter) for v in range(self.bits // 2)]
        if self.bits == 4:
            nibble, four = ir.Constant(quarter, [15] * 16), ir.Constant(quarter, [4] * 16)
            codes = [self.b.and_(v, nibble) for v in codes] + [self.b.lshr(v, four) for v in codes]
        values = [self.b.uitofp(v, FLOATS) for v in codes]
        made = []
        for r, line in enumerate(sums):
            x = self.spread(self.b.sitofp(self.load(self.row(r, column), BYTE), FLOAT))
            made.append([self.b.fadd(t, self.b.fmul(v, x)) for t, v in zip(line, values, strict=True)])
        return made

    def epilogue(self, sums: list[list[Any]]) -> None:
        """out += sum * step * scale + (zero - centre * scale) * step * (sum of the int8)."""
        b = self.b
        sixteen, upper = ir.Constant(WORDS, [16] * 16), ir.Constant(WORDS, [-65536] * 16)
        centre = ir.Constant(FLOATS, [float(CENTRE[self.bits])] * 16)
        for v in range(4):
            word = self.load(self.at(self.scales, 64 * v), WORDS, 4)
            scale = b.bitcast(b.shl(word, sixteen), FLOATS)
            offset = b.fsub(b.bitcast(b.and_(word, upper), FLOATS), b.fmul(centre, scale))
            for r in range(self.rows):
                step = self.spread(self.load(self.at(self.steps, 8 * r), FLOAT, 4))
                total = self.spread(self.load(self.at(self.steps, 8 * r + 4), FLOAT, 4))
                place = self.at(self.out, 256 * r + 64 * v)
                y = b.fadd(self.load(place, FLOATS, 4), b.fmul(b.fmul(sums[r][v], step), scale))
                b.store(b.fadd(y, b.fmul(offset, total)), b.inttoptr(place, FLOATS.as_pointer())).align = 4
