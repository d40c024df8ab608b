"""A stream of bits: of 64 rows, those that a mask names have the next bits, in order. Vector code to take and to
append them.

With BMI2 one instruction spreads or gathers 64 bits; elsewhere a loop does."""

from typing import Any

from .instructions import has
from .vector import BYTE, LONG, Code


def take_bits(code: Code, stream: Any, place: Any, mask: Any) -> tuple[Any, Any]:
    """The bits from bit `place` of the stream on, one for each row of `mask`, at their rows; and the place after them.

    Reads 9 bytes, whatever the mask."""
    b = code.b
    address, shift = code.at(stream, b.lshr(place, LONG(3))), b.and_(place, LONG(7))
    bits = b.lshr(code.load(address, LONG), shift)
    bits = b.or_(bits, b.shl(code.load(code.at(address, 1), LONG), b.sub(LONG(8), shift)))
    if has("bmi2"):
        spread = code.intrinsic("llvm.x86.bmi.pdep.64", LONG, bits, mask)
    else:
        spread = code.ours(_deposit, bits, mask)
    return spread, b.add(place, code.intrinsic("llvm.ctpop.i64", LONG, mask))


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
