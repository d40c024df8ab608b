"""The bin of values that a code of 2, 3, 4, 6 or 8 bits stands for, as bfloat16 bit patterns: vector code for a column of 64
codes.

Code q stands for the values from (q - centre - 0.5) * scale + zero to (q - centre + 0.5) * scale + zero. Bfloat16
magnitudes are ordered as their bit patterns, so a bin is a range of patterns, and a weight is its place in that range.
The place is counted from the bin's far end, where magnitudes are largest: bins that hold most weights are those with
few patterns. A bin of m + 1 patterns takes as many bits as m has (DENSE at least, MOST at most). Where it straddles
zero it takes MOST bits, and one for the side. The fewer the bits of a code, the more weights lie beyond its outermost
bins, so these are WIDER.

Bin ends are computed in float32 by one fixed order of operations, never fused, and cut to their upper 16 bits."""

from typing import Any

from .codes import Codes
from .vector import BIT, BYTE, FLOAT, HALF, LONG, WORD, Vector

# bits every weight's place has, by bits of a code: 8 bytes each for a column of 64 rows
DENSE = {2: 7, 3: 6, 4: 5, 6: 4, 8: 3}
# bits of a place in the widest bin
MOST = 10
# patterns by which the outermost bins are wider than the others, by bits of a code (128 patterns are a doubling)
WIDER = {2: 112, 3: 48, 4: 0, 6: 0, 8: 0}
HALVES = Vector(HALF, 32)
WORDS = Vector(WORD, 16)
FLOATS = Vector(FLOAT, 16)
RUN = Vector(BYTE, 32)
# two vectors of 32: rows 0 to 31 of a column, rows 32 to 63
Pair = list[Any]


class Bins:
    """The bins of a column's 64 codes."""

    def __init__(self, low: Pair, high: Pair, top: Pair, far: Pair, most: Pair, straddles: Pair) -> None:
        # magnitudes at the lower and the upper end
        self.low = low
        self.high = high
        # the upper end with its sign
        self.top = top
        # the larger magnitude of both ends
        self.far = far
        # the largest place in the bin
        self.most = most
        # one bit a row: the bin holds both signs
        self.straddles = straddles


class BinCode(Codes):
    """Code for the columns of one group of one block. `scales`: address of 64 words, (scale, zero) in bfloat16."""

    def __init__(self, context: Any, builder: Any, bits: int, scales: Any) -> None:
        super().__init__(context, builder, bits)
        self.dense = DENSE[bits]
        # for each 16 rows: scale, and what is added to code * scale for the lower and for the upper end
        self.ends: list[tuple[Any, Any, Any]] = []
        b = builder
        offsets = (1 << bits - 1) + 0.5, (1 << bits - 1) - 0.5
        for v in range(4):
            word = self.load(self.at(scales, 64 * v), WORDS, 4)
            scale = b.bitcast(b.shl(word, self.all(WORDS, 16)), FLOATS)
            zero = b.bitcast(b.and_(word, self.all(WORDS, -65536)), FLOATS)
            low, high = (b.fsub(zero, b.fmul(self.all(FLOATS, offset), scale)) for offset in offsets)
            self.ends.append((scale, low, high))

    def bins(self, address: Any) -> Bins:
        """The bins of the column whose codes lie at `address`."""
        b = self.b
        codes = self.column(address)
        low, high = [], []
        for sixteen, (scale, low_end, high_end) in zip(codes, self.ends, strict=True):
            product = b.fmul(b.uitofp(sixteen, FLOATS), scale)
            low.append(b.fadd(product, low_end))
            high.append(b.fadd(product, high_end))
        bottom, top = self.upper(low), self.upper(high)
        straddles = [b.icmp_signed("<", b.xor(x, y), self.all(HALVES, 0)) for x, y in zip(bottom, top, strict=True)]
        lower = [b.and_(x, self.all(HALVES, 0x7FFF)) for x in bottom]
        higher = [b.and_(x, self.all(HALVES, 0x7FFF)) for x in top]
        outermost = self.outermost(codes, top) if WIDER[self.bits] else [None, None]
        far, most = [], []
        for x, y, straddle, outer in zip(lower, higher, straddles, outermost, strict=True):
            larger = self.intrinsic("llvm.umax.v32i16", HALVES, x, y)
            smaller = self.intrinsic("llvm.umin.v32i16", HALVES, x, y)
            if outer is not None:
                larger = b.select(outer, b.add(larger, self.all(HALVES, WIDER[self.bits])), larger)
            far.append(larger)
            places = b.add(b.sub(larger, smaller), self.all(HALVES, 1))
            most.append(b.select(straddle, self.all(HALVES, (1 << MOST) - 1), places))
        return Bins(lower, higher, top, far, most, straddles)

    def outermost(self, codes: list[Any], top: Pair) -> Pair:
        """The rows whose code is the last on the side of the bin's upper end: the first code below zero, else the
        last."""
        b = self.b
        last = (1 << self.bits) - 1
        found = []
        for half, end in enumerate(top):
            both = self.pick(codes[2 * half], codes[2 * half + 1], list(range(32)))
            below = b.icmp_signed("<", end, self.all(HALVES, 0))
            found.append(b.icmp_unsigned("==", both, b.select(below, self.all(RUN, 0), self.all(RUN, last))))
        return found

    def upper(self, vectors: list[Any]) -> Pair:
        """The upper halves of four vectors of 16 words."""
        halves = [self.b.bitcast(v, HALVES) for v in vectors]
        odd = [2 * j + 1 for j in range(32)]
        return [self.pick(halves[0], halves[1], odd), self.pick(halves[2], halves[3], odd)]

    def mask(self, pair: Pair) -> Any:
        """64 bits, one a row, from two vectors of 32."""
        low, high = (self.b.zext(self.b.bitcast(part, WORD), LONG) for part in pair)
        return self.b.or_(low, self.b.shl(high, LONG(32)))

    def rows(self, mask: Any) -> Pair:
        """Two vectors of 32 from 64 bits, one a row."""
        parts = self.b.trunc(mask, WORD), self.b.trunc(self.b.lshr(mask, LONG(32)), WORD)
        return [self.b.bitcast(part, Vector(BIT, 32)) for part in parts]

    def having(self, bins: Bins, bit: int) -> Any:
        """The rows whose place in the bin has this bit, as 64 bits."""
        return self.mask([self.b.icmp_unsigned(">=", most, self.all(HALVES, 1 << bit)) for most in bins.most])

    def far_end(self, bins: Bins, below: Any) -> Pair:
        """The end to count from: where a bin straddles zero, the one on the weight's own side (`below`: the lower)."""
        ends = zip(self.rows(below), bins.low, bins.high, bins.far, bins.straddles, strict=True)
        return [self.b.select(s, self.b.select(n, low, high), far) for n, low, high, far, s in ends]
