"""A stream of bits: of 64 rows, those that a mask names have the next bits, in order. Vector code to take and to
append them.

With BMI2 one instruction spreads or gathers 64 bits; elsewhere a loop does."""

from collections.abc import Sequence
from typing import Any

from .instructions import has
from .vector import BYTE, LONG, Code

# Rows whose bits eight bytes always hold, from whichever bit of the first byte on.
FEW = 57
# Columns ahead of which memory is asked for their bytes, and bytes of the stream for each of them, about.
AHEAD, STREAM = 32, 20


def counted(code: Code, mask: Any) -> Any:
    """How many rows a mask has."""
    return code.intrinsic("llvm.ctpop.i64", LONG, mask)


def take_bits(code: Code, stream: Any, place: Any, mask: Any, *, few: bool = False) -> tuple[Any, Any]:
    """The bits from bit `place` of the stream on, one for each row of `mask`, at their rows; and the place after them.

    Reads 9 bytes, whatever the mask. few: the mask has at most FEW rows, which takes fewer instructions."""
    b = code.b
    address, shift = code.at(stream, b.lshr(place, LONG(3))), b.and_(place, LONG(7))
    bits = b.lshr(code.load(address, LONG), shift)
    if not few:
        bits = b.or_(bits, b.shl(code.load(code.at(address, 1), LONG), b.sub(LONG(8), shift)))
    if has("bmi2"):
        spread = code.intrinsic("llvm.x86.bmi.pdep.64", LONG, bits, mask)
    else:
        spread = code.ours(_deposit, bits, mask)
    return spread, b.add(place, counted(code, mask))


def fetch_ahead(code: Code, stream: Any, place: Any, parts: Sequence[tuple[Any, int]]) -> None:
    """Ask memory for what the column AHEAD columns after this one is made of: of the stream, and of `parts`, each with where this
    column's lies and the bytes of a column."""
    code.prefetch(code.at(stream, code.at(code.b.lshr(place, LONG(3)), AHEAD * STREAM)))
    for address, nbytes in parts:
        code.prefetch(code.at(address, AHEAD * nbytes))


def append_bits(code: Code, stream: Any, place: Any, bits: Any, mask: Any) -> Any:
    """Write the bits in the rows of `mask` at bit `place` of a stream that is zero from there on; the place after
    them."""
    b = code.b
    address, shift = code.at(stream, b.lshr(place, LONG(3))), b.and_(place, LONG(7))
    if has("bmi2"):
        packed = code.intrinsic("llvm.x86.bmi.pext.64", LONG, bits, mask)
    else:
        packed = code.ours(_extract, bits, mask)
    code.store(b.or_(code.load(address, LONG), b.shl(packed, shift)), address)
    rest = b.lshr(b.lshr(packed, LONG(1)), b.sub(LONG(63), shift))
    code.store(b.trunc(rest, BYTE), code.at(address, 8))
    return b.add(place, code.intrinsic("llvm.ctpop.i64", LONG, mask))


def _deposit(bits: int, mask: int) -> int:
    """The low bits of `bits` moved to the places where `mask` has a 1, in order."""
    spread = 0
    row = 0
    while mask != 0:
        if mask & 1:
            spread |= (bits & 1) << row
            bits >>= 1
        mask = mask >> 1 & 0x7FFFFFFFFFFFFFFF
        row += 1
    return spread


def _extract(bits: int, mask: int) -> int:
    """The bits at the places where `mask` has a 1, moved together."""
    packed = 0
    count = 0
    while mask != 0:
        if mask & 1:
            packed |= (bits & 1) << count
            count += 1
        mask = mask >> 1 & 0x7FFFFFFFFFFFFFFF
        bits >>= 1
    return packed
