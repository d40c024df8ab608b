"""Products of codes and int8, four columns at a time, in the way that each set of instructions has for it. All give the same sums.

A `ByteDot` adds to 16 sums of 32 bits. Word j of the codes holds those of row j in four columns, a byte each: a *quad*; every word
of x holds the same four numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .instructions import has
from .vector import BYTE, HALF, WORD, Code, Vector


class ByteDot(ABC):
    """Adds products of codes and int8 to sums."""

    name: str
    # what the processor must have, as LLVM calls it
    needs: tuple[str, ...]
    # sums that one instruction adds to
    width: int
    # the largest code that it multiplies rightly
    largest = 255
    # quads whose products are added at once
    quads = 1
    # registers for vectors hold the sums of four rows, 64 each
    holds_all = False

    def __init__(self, code: Code) -> None:
        self.code, self.b = code, code.b

    def prepared(self, x: Any) -> Any:
        """What `add` takes of x, int8 as 16 words."""
        return self.cut(x)

    def add(self, totals: Any, codes: list[Any], x: list[Any]) -> Any:
        """`totals` and the products of `quads` quads with prepared x, one each."""
        parts = zip(self.cut(totals), zip(*map(self.cut, codes), strict=True), zip(*x, strict=True), strict=True)
        return self.joined([self.part(total, list(own), list(numbers)) for total, own, numbers in parts])

    @abstractmethod
    def part(self, total: Any, codes: list[Any], x: list[Any]) -> Any:
        """`width` sums after the products of `quads` quads."""

    def cut(self, words: Any) -> list[Any]:
        """16 words as vectors of `width`."""
        return [self.code.pick(words, words, list(range(first, first + self.width))) for first in range(0, 16, self.width)]

    def joined(self, parts: list[Any]) -> Any:
        """Vectors of words, one after the other, as one."""
        while len(parts) > 1:
            count = parts[0].type.count * 2
            parts = [self.code.pick(a, b, list(range(count))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def as_bytes(self, words: Any) -> Any:
        return self.b.bitcast(words, Vector(BYTE, words.type.count * 4))

    def as_halves(self, words: Any) -> Any:
        return self.b.bitcast(words, Vector(HALF, words.type.count * 2))


class QuadDot(ByteDot):
    """A way that adds the products of each quad by itself."""

    def part(self, total: Any, codes: list[Any], x: list[Any]) -> Any:
        for own, numbers in zip(codes, x, strict=True):
            total = self.one(total, own, numbers)
        return total

    @abstractmethod
    def one(self, total: Any, codes: Any, x: Any) -> Any:
        """`part` for one quad."""


class WideVnniDot(QuadDot):
    """One instruction for 16 sums (AVX-512 VNNI)."""

    name, needs, width, holds_all = "avx512vnni", ("avx512vnni", "avx512bw"), 16, True

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        return self.code.intrinsic("llvm.x86.avx512.vpdpbusd.512", total.type, total, codes, x)


class VnniDot(QuadDot):
    """One instruction for 8 sums (AVX-VNNI, which processors without AVX-512 have)."""

    name, needs, width = "avxvnni", ("avxvnni", "avx2"), 8

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        return self.code.intrinsic("llvm.x86.avx512.vpdpbusd.256", total.type, total, codes, x)


class HalvesDot(QuadDot):
    """Even and odd bytes of a word become halves of 16 bits, which AVX2 multiplies and adds in pairs: no sum can overflow."""

    name, needs, width = "avx2", ("avx2",), 8
    pairs = "llvm.x86.avx2.pmadd.wd"

    def prepared(self, x: Any) -> Any:
        even, odd = [], []
        for part in map(self.as_halves, self.cut(x)):
            eight = self.code.all(part.type, 8)
            even.append(self.b.ashr(self.b.shl(part, eight), eight))
            odd.append(self.b.ashr(part, eight))
        return list(zip(even, odd, strict=True))

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        halves = self.as_halves(codes)
        even = self.b.and_(halves, self.code.all(halves.type, 255))
        odd = self.b.lshr(halves, self.code.all(halves.type, 8))
        for own, numbers in zip((even, odd), x, strict=True):
            total = self.b.add(total, self.code.intrinsic(self.pairs, total.type, own, numbers))
        return total


class WideHalvesDot(HalvesDot):
    """`HalvesDot` for 16 sums at once (AVX-512 without VNNI)."""

    name, needs, width, holds_all = "avx512", ("avx512bw",), 16, True
    pairs = "llvm.x86.avx512.pmaddw.d.512"


class BytesDot(ByteDot):
    """Bytes are multiplied and added in pairs, those of `quads` quads in 16 bits, and these in pairs again (AVX2)."""

    # 4 * 2 * 127 * 28 is less than 2**15
    name, needs, width, largest, quads = "avx2-bytes", ("avx2",), 8, 28, 4
    first, second = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"

    def part(self, total: Any, codes: list[Any], x: list[Any]) -> Any:
        sums = [self.pairs(own, numbers) for own, numbers in zip(codes, x, strict=True)]
        while len(sums) > 1:
            sums = [self.b.add(first, second) for first, second in zip(sums[::2], sums[1::2], strict=True)]
        return self.b.add(total, self.whole(sums[0]))

    def pairs(self, codes: Any, x: Any) -> Any:
        """The products of a quad, added in pairs of 16 bits."""
        return self.code.intrinsic(self.first, Vector(HALF, 2 * self.width), self.as_bytes(codes), self.as_bytes(x))

    def whole(self, pairs: Any) -> Any:
        """`width` sums of 32 bits from sums of such pairs."""
        return self.code.intrinsic(self.second, Vector(WORD, self.width), pairs, self.code.all(pairs.type, 1))


class WideBytesDot(BytesDot):
    """`BytesDot` for 16 sums at once (AVX-512 without VNNI)."""

    name, needs, width, holds_all = "avx512-bytes", ("avx512bw",), 16, True
    first, second = "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"


class LargeBytesDot(BytesDot):
    """`BytesDot` for larger codes, of which 16 bits hold the products of fewer quads."""

    # 2 * 2 * 127 * 64 is less than 2**15
    name, largest, quads = "avx2-large-bytes", 64, 2


class WideLargeBytesDot(WideBytesDot):
    """`LargeBytesDot` for 16 sums at once (AVX-512 without VNNI)."""

    name, largest, quads = "avx512-large-bytes", 64, 2


class MixedDot(QuadDot):
    """One instruction for 4 sums, codes without a sign (NEON with i8mm)."""

    name, needs, width = "i8mm", ("neon", "i8mm"), 4
    dot = "llvm.aarch64.neon.usdot.v4i32.v16i8"

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        return self.code.intrinsic(self.dot, total.type, total, self.as_bytes(codes), self.as_bytes(x))


class SignedDot(MixedDot):
    """The same for bytes with a sign (NEON with dot product)."""

    name, needs, largest = "dotprod", ("neon", "dotprod"), 127
    dot = "llvm.aarch64.neon.sdot.v4i32.v16i8"


class PairsDot(QuadDot):
    """Bytes with a sign are multiplied into halves, and these added in pairs, twice (NEON)."""

    name, needs, width, largest = "neon", ("neon",), 4, 127

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        codes, x = self.as_bytes(codes), self.as_bytes(x)
        kind, sums = Vector(HALF, 8), []
        for half in (0, 8):
            own, numbers = (self.code.pick(v, v, list(range(half, half + 8))) for v in (codes, x))
            product = self.code.intrinsic("llvm.aarch64.neon.smull.v8i16", kind, own, numbers)
            sums.append(self.code.intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", total.type, product))
        # each of both has two sums for each of two rows
        return self.b.add(total, self.code.intrinsic("llvm.aarch64.neon.addp.v4i32", total.type, *sums))


def _centred(one: Callable[[Any, Any, Any], Any], code: Code, total: Any, codes: Any, x: Any) -> Any:
    """`one` for codes without a sign where its bytes have one: 128 less of each, and 128 times x added."""
    # as bytes with a sign, all -128; the product is the same for all rows, so it is made once
    centre = code.all(codes.type, -0x7F7F7F80)
    less = one(total, code.b.xor(codes, centre), x)
    return code.b.sub(less, one(code.all(codes.type, 0), centre, x))


class CentredSignedDot(SignedDot):
    """Any codes by `SignedDot`."""

    name, largest = "dotprod-all", 255

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        return _centred(super().one, self.code, total, codes, x)


class CentredPairsDot(PairsDot):
    """Any codes by `PairsDot`."""

    name, largest = "neon-all", 255

    def one(self, total: Any, codes: Any, x: Any) -> Any:
        return _centred(super().one, self.code, total, codes, x)


WAYS: tuple[type[ByteDot], ...] = (
    *(WideVnniDot, WideBytesDot, WideLargeBytesDot, WideHalvesDot, VnniDot, BytesDot, LargeBytesDot, HalvesDot),
    *(MixedDot, SignedDot, CentredSignedDot, PairsDot, CentredPairsDot),
)
"""The fastest first, of each family of processors."""


def way(largest: int) -> type[ByteDot] | None:
    """The fastest way to multiply codes up to `largest` on the machine that numba compiles for; None: in float32 alone."""
    return next((each for each in WAYS if has(*each.needs) and each.largest >= largest), None)
