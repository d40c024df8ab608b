"""`residual_bits`' tiles read by AVX2, which has no masks of bits: the same weights in half the time.

Values of 16 bits lie in the order in which AVX2 packs two vectors into one of bytes, so that going from one to the other and back
is one instruction: of 32 rows the first vector has rows 0 to 7 and 16 to 23, the second one the others. A row's place comes as one
bit in each of several masks; eight masks of 64 rows become 64 bytes as matrices of bits that are turned.

A column's bins and masks are found some columns before its weights, so that a processor that looks a few hundred instructions
ahead finds some that need not wait for each other."""

from typing import Any

from .bins import DENSE, MOST, WIDER
from .bit_stream import take_bits
from .codes import Codes
from .instructions import has
from .vector import BYTE, FLOAT, HALF, LONG, WORD, Vector

RUN, HALVES, WORDS = Vector(BYTE, 32), Vector(HALF, 16), Vector(WORD, 8)
FLOATS, LONGS = Vector(FLOAT, 8), Vector(LONG, 4)
# columns whose bins are found before the weights of the first
AHEAD = 16
# which masks are turned together: a place's bits, the side, and none. With four bits together, bits 4 to 7 stay where they are
SIDE, NONE = "side", "none"
TOGETHER = (8, 9, SIDE, NONE, 4, 5, 6, 7)
APART = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, SIDE, NONE, NONE, NONE, NONE, NONE)
# the order in which they are kept for that
KEPT = (0, 1, 4, 5, 2, 3, 6, 7)


def reads_by_avx2() -> bool:
    """Whether kernels are compiled for a machine on which this is the faster way."""
    return has("avx2", "bmi2") and not has("avx512bw")


class Avx2Tile(Codes):
    """Code that reads the columns of one group of one block. `scales`: address of 64 words, (scale, zero) in bfloat16."""

    def __init__(self, context: Any, builder: Any, bits: int, scales: Any) -> None:
        super().__init__(context, builder, bits)
        self.dense = DENSE[bits]
        self.masks = TOGETHER if self.dense >= 4 else APART
        # bytes that are kept of a column: the masks, and two ends for each of 64 rows
        self.kept = 8 * len(self.masks) + 256
        # for each vector of floats (`rows`): scale, what is added for the lower and for the upper end
        self.ends: list[tuple[Any, Any, Any]] = []
        b = builder
        offsets = (1 << bits - 1) + 0.5, (1 << bits - 1) - 0.5
        for half, part in ((half, part) for half in (0, 1) for part in range(4)):
            words = [self.load(self.at(scales, 128 * half + 64 * lane), Vector(WORD, 16), 4) for lane in (0, 1)]
            word = self.pick(words[0], words[1], self.rows(part))
            scale = b.bitcast(b.shl(word, self.all(WORDS, 16)), FLOATS)
            zero = b.bitcast(b.and_(word, self.all(WORDS, -65536)), FLOATS)
            low, high = (b.fsub(zero, b.fmul(self.all(FLOATS, offset), scale)) for offset in offsets)
            self.ends.append((scale, low, high))

    @staticmethod
    def rows(part: int) -> list[int]:
        """Which of 32 rows vector `part` of floats has: every other of the first or the second half of each 16."""
        return [lane + 8 * (part // 2) + part % 2 + 2 * i for lane in (0, 16) for i in range(4)]

    def read(self, codes: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any) -> Any:
        """Write all columns; returns the place in the stream after them."""
        b = self.b
        room = self.room(RUN, AHEAD * self.kept // 32)
        place = self.room(LONG, 1)
        self.store(start, place, 8)
        with self.over(columns, AHEAD) as (first, _):
            left = b.sub(columns, first)
            count = b.select(b.icmp_signed("<", left, LONG(AHEAD)), left, LONG(AHEAD))
            dense_here = self.at(dense, b.mul(first, LONG(8 * self.dense)))
            for write in (False, True):
                with self.over(count, 1) as (column, _):
                    kept = self.at(room, b.mul(column, LONG(self.kept)))
                    own = self.at(dense_here, b.mul(column, LONG(8 * self.dense)))
                    at = b.add(first, column)
                    if write:
                        self.write(kept, own, self.at(blocks, b.shl(at, LONG(7))))
                    else:
                        own_codes = self.at(codes, b.mul(at, LONG(8 * self.bits)))
                        self.store(self.find(own_codes, own, stream, self.load(place, LONG, 8), kept), place, 8)
        return self.load(place, LONG, 8)

    def find(self, codes: Any, dense: Any, stream: Any, place: Any, kept: Any) -> Any:
        """Keep a column's masks and ends at the address `kept`; returns the place in the stream after it."""
        straddles, most = [], []
        for half, run in enumerate(self.runs(codes)):
            bins = [self.bins(*part) for part in self.bin_ends(half, run)]
            straddles.append(self.packed([own[0] for own in bins]))
            most.append(self.packed([own[1] for own in bins]))
            for i, own in enumerate(bins):
                for k, end in enumerate(own[2:]):
                    self.store(end, self.at(kept, 8 * len(self.masks) + 64 * (2 * half + i) + 32 * k), 32)
        side, place = take_bits(self, stream, place, self.mask(straddles))
        masks: dict[int | str, Any] = {SIDE: side, NONE: LONG(0)}
        for bit in range(MOST):
            if bit >= self.dense:
                having = [self.b.icmp_signed(">", each, self.all(RUN, (1 << bit - self.dense) - 1)) for each in most]
                masks[bit], place = take_bits(self, stream, place, self.mask([self.b.sext(each, RUN) for each in having]))
            else:
                masks[bit] = self.load(self.at(dense, 8 * bit), LONG)
        for first in range(0, len(self.masks), 8):
            for i, mask in enumerate(KEPT):
                self.store(masks[self.masks[first + mask]], self.at(kept, 8 * (first + i)), 8)
        return place

    def runs(self, address: Any) -> list[Any]:
        """The codes of rows 0 to 31 and of the others, a byte each."""
        if self.bits == 4:
            return self.nibbles(self.load(address, RUN))
        quarters = self.column(address)
        return [self.pick(quarters[first], quarters[first + 1], list(range(32))) for first in (0, 2)]

    def nibbles(self, run: Any) -> list[Any]:
        return [self.b.and_(run, self.all(RUN, 15)), self.b.lshr(run, self.all(RUN, 4))]

    def bin_ends(self, half: int, run: Any) -> list[list[Any]]:
        """Of 16 rows and of the other 16: both ends of their bins, as bfloat16, and `outermost` (None where no bin is wider)."""
        b = self.b
        low, high = [], []
        for part in range(4):
            scale, low_end, high_end = self.ends[4 * half + part]
            words = self.pick(run, self.all(RUN, 0), [place for row in self.rows(part) for place in (row, 32, 32, 32)])
            product = b.fmul(b.sitofp(b.bitcast(words, WORDS), FLOATS), scale)
            low.append(b.bitcast(b.fadd(product, low_end), WORDS))
            high.append(b.bitcast(b.fadd(product, high_end), WORDS))
        bottom, top = self.upper(low), self.upper(high)
        outer = [None, None] if WIDER[self.bits] == 0 else self.outermost(run, top)
        return [list(part) for part in zip(bottom, top, outer, strict=True)]

    def upper(self, parts: list[Any]) -> list[Any]:
        """The upper halves of four vectors of 8 words, as a pair."""
        b, sixteen = self.b, self.all(WORDS, 16)
        evens = [b.bitcast(b.lshr(v, sixteen), HALVES) for v in parts[::2]]
        order = [place for i in range(0, 16, 2) for place in (i, 17 + i)]
        return [self.pick(even, b.bitcast(odd, HALVES), order) for even, odd in zip(evens, parts[1::2], strict=True)]

    def outermost(self, run: Any, tops: list[Any]) -> list[Any]:
        """Which rows' code is the first, if the upper end is below zero, else the last."""
        codes = self.unpacked(run, self.all(RUN, 0))
        last = self.all(HALVES, (1 << self.bits) - 1)
        ends = [self.b.and_(last, self.b.xor(self.negative(top), self.all(HALVES, -1))) for top in tops]
        return [self.b.sext(self.b.icmp_signed("==", x, end), HALVES) for x, end in zip(codes, ends, strict=True)]

    def bins(self, bottom: Any, top: Any, outer: Any) -> tuple[Any, Any, Any, Any]:
        """Of 16 rows: -1 where the bin straddles zero; its largest place without the dense bits; the end to count from, with its
        sign, for a row on the side of the lower end, and for others."""
        b = self.b
        straddles = self.negative(b.xor(bottom, top))
        # elsewhere both ends have one sign, so magnitudes compare and differ as these do
        far = self.intrinsic("llvm.umax.v16i16", HALVES, bottom, top)
        near = self.intrinsic("llvm.umin.v16i16", HALVES, bottom, top)
        if outer is not None:
            far = b.add(far, b.and_(outer, self.all(HALVES, WIDER[self.bits])))
        most = b.or_(b.sub(b.sub(far, near), self.all(HALVES, -1)), straddles)
        return straddles, b.lshr(most, self.all(HALVES, self.dense)), bottom, self.chosen(straddles, top, far)

    def write(self, kept: Any, dense: Any, block: Any) -> None:
        """Write a column's weights from what was kept of it."""
        b = self.b
        turned = self.turned(kept)
        if self.dense >= 4:
            together = self.nibbles(self.load(dense, RUN))
            low = [b.or_(b.and_(t, self.all(RUN, -16)), four) for t, four in zip(turned, together, strict=True)]
            high = turned
        else:
            low, high = turned, self.turned(self.at(kept, 64))
        for half in range(2):
            found = []
            # the side is the highest bit of each byte of a mask here
            side = b.bitcast(b.shl(b.bitcast(high[half], HALVES), self.all(HALVES, 5)), RUN)
            pairs = zip(self.unpacked(low[half], high[half]), self.unpacked(side, side), strict=True)
            for i, (both, below) in enumerate(pairs):
                place = self.at(kept, 8 * len(self.masks) + 64 * (2 * half + i))
                lower, other = (self.load(self.at(place, 32 * k), HALVES, 32) for k in (0, 1))
                end = self.chosen(below, lower, other)
                found.append(b.sub(b.sub(end, b.and_(both, self.all(HALVES, 1023))), self.all(HALVES, -1)))
            for part in range(2):
                order = [16 * second + 8 * part + j for second in (0, 1) for j in range(8)]
                self.store(self.pick(found[0], found[1], order), self.at(block, 64 * half + 32 * part))

    def turned(self, kept: Any) -> list[Any]:
        """Eight masks of 64 rows as a byte a row, whose bit i is that of mask i: two vectors."""
        b = self.b
        pairs = [lane + 8 * second + i for lane in (0, 16) for i in range(8) for second in (0, 1)]
        vectors = [self.load(self.at(kept, 32 * k), RUN, 32) for k in (0, 1)]
        vectors = [b.bitcast(self.pick(v, v, pairs), HALVES) for v in vectors]
        found = []
        for first in (0, 4):
            order = [lane + first + i + 16 * second for lane in (0, 8) for i in range(4) for second in (0, 1)]
            fours = b.bitcast(self.pick(vectors[0], vectors[1], order), WORDS)
            x = b.bitcast(self.pick(fours, fours, [0, 4, 1, 5, 2, 6, 3, 7]), LONGS)
            # each 64 bits are a matrix of 8 by 8 now, whose quarters change places, then quarters of these
            for by, mask in ((28, 0x00000000F0F0F0F0), (14, 0x0000CCCC0000CCCC), (7, 0x00AA00AA00AA00AA)):
                moved = self.all(LONGS, by)
                t = b.and_(b.xor(x, b.lshr(x, moved)), self.all(LONGS, mask))
                x = b.xor(b.xor(x, t), b.shl(t, moved))
            found.append(b.bitcast(x, RUN))
        return found

    def packed(self, pair: list[Any]) -> Any:
        """A pair as bytes; what they do not hold becomes 127."""
        return self.intrinsic("llvm.x86.avx2.packsswb", RUN, *pair)

    def unpacked(self, low: Any, high: Any) -> list[Any]:
        """Low and high bytes as a pair."""
        pair = []
        for first in (0, 8):
            order = [lane + first + i + 32 * upper for lane in (0, 16) for i in range(8) for upper in (0, 1)]
            pair.append(self.b.bitcast(self.pick(low, high, order), HALVES))
        return pair

    def mask(self, pair: list[Any]) -> Any:
        """64 bits, one a row: the highest of each byte."""
        low, high = (self.b.zext(self.intrinsic("llvm.x86.avx2.pmovmskb", WORD, each), LONG) for each in pair)
        return self.b.or_(low, self.b.shl(high, LONG(32)))

    def negative(self, values: Any) -> Any:
        """-1 where the highest bit is set, else 0."""
        return self.b.ashr(values, self.all(HALVES, 15))

    def chosen(self, mask: Any, yes: Any, no: Any) -> Any:
        """yes where the highest bit of the mask's bytes is set, else no."""
        parts = [self.b.bitcast(v, RUN) for v in (no, yes, mask)]
        return self.b.bitcast(self.intrinsic("llvm.x86.avx2.pblendvb", RUN, *parts), HALVES)
