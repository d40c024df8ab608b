"""Numbers of 64 rows as bytes and as pairs of vectors of 16 bits, in vectors of 32 or 64 bytes, and how one becomes the other.

The halves of a pair lie in the order in which AVX2 and AVX-512 pack two vectors into one of bytes: of each 16 rows the first vector
has the first eight, the second one the others. So going from one to the other and back is one instruction."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from .codes import Codes
from .instructions import has
from .vector import BYTE, FLOAT, HALF, LONG, WORD, Vector


class ByteVectors(Codes):
    """Code for vectors of `width` bytes, 32 or 64."""

    def __init__(self, context: Any, builder: Any, bits: int, width: int) -> None:
        super().__init__(context, builder, bits)
        self.width = width
        self.run, self.halves, self.words = (Vector(kind, width // n) for kind, n in ((BYTE, 1), (HALF, 2), (WORD, 4)))
        self.numbers, self.longs = Vector(FLOAT, width // 4), Vector(LONG, width // 8)
        # first bytes of the lanes of 16 bytes
        self.lanes = range(0, width, 16)

    def natural(self, found: list[Any]) -> list[Any]:
        """Two vectors in the order of the rows."""
        lanes, made = len(self.lanes), []
        for part in range(2):
            here = range(part * lanes // 2, (part + 1) * lanes // 2)
            order = [self.width // 2 * second + 8 * lane + j for lane in here for second in (0, 1) for j in range(8)]
            made.append(self.pick(found[0], found[1], order))
        return made

    def transposed(self, matrices: Any) -> Any:
        """Each 64 bits turned as a matrix of 8 by 8, a line a byte."""
        b = self.b
        if has("gfni"):
            lines = self.constant(self.run, [1 << i for i in range(8)] * (self.width // 8))
            name = f"llvm.x86.vgf2p8affineqb.{8 * self.width}"
            return self.intrinsic(name, self.run, lines, b.bitcast(matrices, self.run), BYTE(0))
        x = b.bitcast(matrices, self.longs)
        # quarters of each matrix change places, then quarters of these
        for by, mask in ((28, 0x00000000F0F0F0F0), (14, 0x0000CCCC0000CCCC), (7, 0x00AA00AA00AA00AA)):
            moved = self.all(self.longs, by)
            t = b.and_(b.xor(x, b.lshr(x, moved)), self.all(self.longs, mask))
            x = b.xor(b.xor(x, t), b.shl(t, moved))
        return b.bitcast(x, self.run)

    def packed(self, pair: list[Any]) -> Any:
        """A pair as bytes; what they do not hold becomes 127, or -128."""
        if has("avx2"):
            name = "llvm.x86.avx512.packsswb.512" if self.width == 64 else "llvm.x86.avx2.packsswb"
            return self.intrinsic(name, self.run, *pair)
        count = self.width // 2
        for name, end in (("smin", 127), ("smax", -128)):
            pair = [self.intrinsic(f"llvm.{name}.v{count}i16", self.halves, each, self.all(self.halves, end)) for each in pair]
        low, high = (self.b.trunc(each, Vector(BYTE, count)) for each in pair)
        return self.pick(low, high, [lane // 2 + i + count * second for lane in self.lanes for second in (0, 1) for i in range(8)])

    def unpacked(self, low: Any, high: Any) -> list[Any]:
        """Low and high bytes as a pair."""
        pair = []
        for first in (0, 8):
            order = [lane + first + i + self.width * upper for lane in self.lanes for i in range(8) for upper in (0, 1)]
            pair.append(self.b.bitcast(self.pick(low, high, order), self.halves))
        return pair

    def mask(self, runs: list[Any]) -> Any:
        """64 bits, one a row."""
        if self.width == 64:
            return self.b.bitcast(runs[0], LONG)
        low, high = (self.b.zext(self.b.bitcast(each, ir.IntType(32)), LONG) for each in runs)
        return self.b.or_(low, self.b.shl(high, LONG(32)))

    def negative(self, values: Any) -> Any:
        """-1 where the highest bit is set, else 0."""
        return self.b.ashr(values, self.all(self.halves, 15))
