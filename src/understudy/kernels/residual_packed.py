"""`residual_bits`' tiles read by AVX2 or AVX-512: the same weights in half the time.

Values of 16 bits lie in the order in which these pack two vectors into one of bytes, so that going from one to the other and back
is one instruction: of each 16 rows the first vector has the first eight, the second one the others. A row's place comes as one
bit in each of several masks; eight masks of 64 rows become 64 bytes as matrices of bits that are turned.

A column's bins are found some columns before its bits are taken from the stream, and those some columns before its weights are made
of them, so that a processor that looks a few hundred instructions ahead finds some that need not wait for each other."""

from typing import Any

from .bins import DENSE, MOST, WIDER
from .bit_stream import FEW, counted, fetch_ahead, take_bits
from .byte_vectors import ByteVectors
from .instructions import has
from .vector import BIT, BYTE, HALF, LONG, WORD, Vector

# so many columns after its bins are found, a column's bits are taken from the stream, and its weights are written; of so many
# columns something is kept
TAKEN, WRITTEN, KEEP = 4, 8, 16
# which masks are turned together: a place's bits, the side where a bin straddles zero, and elsewhere whether the lower end is the
# far one. With four bits together, bits 4 to 7 stay where they are
SIDE, BELOW, NONE = "side", "below", "none"
TOGETHER = (8, 9, SIDE, BELOW, 4, 5, 6, 7)
APART = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, SIDE, BELOW, NONE, NONE, NONE, NONE)
# the order in which AVX2 keeps masks for that
KEPT = (0, 1, 4, 5, 2, 3, 6, 7)
# a row's place, and what says that it counts from the lower end, in its 16 bits once its bytes are together
PLACE, LOWER = 0x3FF, 0xC00


def packs() -> bool:
    """Whether kernels are compiled for a machine on which this is the faster way."""
    return has("avx2", "bmi2")


def widest() -> int:
    """Bytes of the vectors of that machine."""
    return 64 if has("avx512bw", "avx512vl") else 32


class PackedTile(ByteVectors):
    """Code that reads the columns of one group of one block. `scales`: address of 64 words, (scale, zero) in bfloat16; `width`:
    bytes of a vector, 32 or 64."""

    # bits of a place in the widest bin, and half of what a bin is wide, in scales
    most: int = MOST
    half: float = 0.5

    def __init__(self, context: Any, builder: Any, bits: int, scales: Any, width: int) -> None:
        super().__init__(context, builder, bits, width)
        self.dense, self.masks = self.form()
        # by how many bits `bins` shortens the largest places, so that they fit a byte
        self.shift = self.dense
        # bytes that are kept of a column: the masks, and two ends for each of 64 rows
        self.kept = 8 * len(self.masks) + 256
        # for each vector of floats (`rows`): scale, what is added for the lower and for the upper end
        self.ends: list[tuple[Any, Any, Any]] = []
        b = builder
        offsets = (1 << bits - 1) + self.half, (1 << bits - 1) - self.half
        for run, part in ((run, part) for run in range(64 // width) for part in range(4)):
            words = self.load(self.at(scales, 4 * width * run), Vector(WORD, width), 4)
            word = self.pick(words, words, self.rows(part))
            scale = self.in_units(b.bitcast(b.shl(word, self.all(self.words, 16)), self.numbers), run, part)
            zero = self.in_units(b.bitcast(b.and_(word, self.all(self.words, -65536)), self.numbers), run, part)
            low, high = (b.fsub(zero, b.fmul(self.all(self.numbers, offset), scale)) for offset in offsets)
            self.ends.append((scale, low, high))

    def form(self) -> tuple[int, tuple[int | str, ...]]:
        """Bits of a place that lie in the dense part, and which masks are turned together."""
        return DENSE[self.bits], TOGETHER if DENSE[self.bits] >= 4 else APART

    def in_units(self, number: Any, run: int, part: int) -> Any:
        """A scale or zero of the rows of vector `part` of a run, in units of what is counted."""
        return number

    def rows(self, part: int) -> list[int]:
        """Which rows of a run vector `part` of floats has: every other of the first or the second half of each 16."""
        return [lane + 8 * (part // 2) + part % 2 + 2 * i for lane in self.lanes for i in range(4)]

    def read(self, codes: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any) -> Any:
        """Write all columns; returns the place in the stream after them."""
        b = self.b
        room = self.room(self.run, KEEP * self.kept // self.width)
        place = self.room(LONG, 1)
        self.store(start, place, 8)

        def of(at: Any) -> tuple[Any, Any]:
            """Where a column's masks and ends are kept, and where its dense part is."""
            kept = self.at(room, b.mul(b.and_(at, LONG(KEEP - 1)), LONG(self.kept)))
            return kept, self.at(dense, b.mul(at, LONG(8 * self.dense)))

        with self.over(self.at(columns, WRITTEN), 1) as (column, _):
            with b.if_then(b.icmp_signed("<", column, columns)):
                own_codes = self.at(codes, b.mul(column, LONG(8 * self.bits)))
                kept, own = of(column)
                ahead = [(own_codes, 8 * self.bits), (own, 8 * self.dense)][: 2 if self.dense else 1]
                fetch_ahead(self, stream, self.load(place, LONG, 8), ahead)
                self.find(own_codes, kept)
            second = b.sub(column, LONG(TAKEN))
            with b.if_then(b.icmp_unsigned("<", second, columns)):
                kept, own = of(second)
                self.store(self.take(own, stream, self.load(place, LONG, 8), kept), place, 8)
            third = b.sub(column, LONG(WRITTEN))
            with b.if_then(b.icmp_signed(">=", third, LONG(0))):
                self.write(*of(third), self.at(blocks, b.shl(third, LONG(7))))
        return self.load(place, LONG, 8)

    def find(self, codes: Any, kept: Any) -> None:
        """Keep at the address `kept` which rows of a column have which bits in the stream, and the ends of all rows' bins."""
        b = self.b
        found: list[list[Any]] = []
        for n, run in enumerate(self.runs(codes)):
            bins = [self.bins(*part) for part in self.bin_ends(n, run)]
            found.append([self.packed([own[i] for own in bins]) for i in range(3)])
            for i, own in enumerate(bins):
                for k, end in enumerate(own[3:]):
                    self.store(end, self.end_at(kept, n, i, k), self.width)
        straddles, below, most = zip(*found, strict=True)
        for name, runs in ((SIDE, straddles), (BELOW, below)):
            self.store(self.mask([b.icmp_signed("<", run, self.all(self.run, 0)) for run in runs]), self.mask_at(kept, name), 8)
        for bit in range(self.dense, self.most):
            having = [b.icmp_signed(">", each, self.all(self.run, (1 << bit - self.shift) - 1)) for each in most]
            self.store(self.mask(having), self.mask_at(kept, bit), 8)

    def take(self, dense: Any, stream: Any, place: Any, kept: Any) -> Any:
        """Put a column's bits in the place of the masks of the rows that have them; returns the place in the stream after it."""
        b = self.b
        straddles, below = (self.load(self.mask_at(kept, name), LONG, 8) for name in (SIDE, BELOW))
        self.store(b.and_(below, b.not_(straddles)), self.mask_at(kept, BELOW), 8)
        for bit in range(4 if self.dense >= 4 else 0, self.dense):
            self.store(self.load(self.at(dense, 8 * bit), LONG), self.mask_at(kept, bit), 8)
        masks = {SIDE: straddles} | {bit: self.load(self.mask_at(kept, bit), LONG, 8) for bit in range(self.dense, self.most)}
        # No bit is in more places than the one before it, and each side is in a place that has all bits.
        few = b.icmp_unsigned("<=", counted(self, masks[self.dense + 1]), LONG(FEW))
        ends = []
        with b.if_else(few, likely=True) as ways:
            for way, shorter in zip(ways, (True, False), strict=True):
                with way:
                    end = place
                    for name, mask in masks.items():
                        bits, end = take_bits(self, stream, end, mask, few=shorter and name != self.dense)
                        self.store(bits, self.mask_at(kept, name), 8)
                    ends.append((end, b.block))
        after = b.phi(LONG)
        for end, block in ends:
            after.add_incoming(end, block)
        return after

    def mask_at(self, kept: Any, name: int | str) -> Any:
        """Where a mask is kept: `turned` takes the bytes of each matrix from eight of them."""
        eights = [self.masks[first : first + 8] for first in range(0, len(self.masks), 8)]
        # the instruction that turns matrices counts their lines from below
        eights = [eight[::-1] for eight in eights] if has("gfni") else eights
        order = [eight[i] for eight in eights for i in (KEPT if self.width == 32 else range(8))]
        return self.at(kept, 8 * order.index(name))

    def end_at(self, kept: Any, run: int, i: int, k: int) -> Any:
        """Where the ends of vector i of a run are kept: k = 0 for the lower end, 1 for the upper one."""
        return self.at(kept, 8 * len(self.masks) + self.width * (4 * run + 2 * i + k))

    def runs(self, address: Any) -> list[Any]:
        """The codes of a column, a byte each, in vectors."""
        if self.bits == 4:
            return self.nibbles(address)
        quarters = self.column(address)
        halves = [self.pick(quarters[first], quarters[first + 1], list(range(32))) for first in (0, 2)]
        return halves if self.width == 32 else [self.pick(halves[0], halves[1], list(range(64)))]

    def nibbles(self, address: Any) -> list[Any]:
        """64 numbers of 4 bits, a byte each, in vectors."""
        b, kind = self.b, Vector(BYTE, 32)
        run = self.load(address, kind)
        if self.width == 32:
            return [b.and_(run, self.all(kind, 15)), b.lshr(run, self.all(kind, 4))]
        # bits that come from a neighbour are cut off then
        words = Vector(HALF, 16)
        upper = b.bitcast(b.lshr(b.bitcast(run, words), self.all(words, 4)), kind)
        return [b.and_(self.pick(run, upper, list(range(64))), self.all(self.run, 15))]

    def bin_ends(self, n: int, run: Any) -> list[list[Any]]:
        """Of both vectors of rows of run n: both ends of their bins, as bfloat16, and `outermost` (None where no bin is wider)."""
        b, nothing = self.b, self.width
        low, high = [], []
        for part in range(4):
            scale, low_end, high_end = self.ends[4 * n + part]
            order = [place for row in self.rows(part) for place in (row, nothing, nothing, nothing)]
            words = self.pick(run, self.all(self.run, 0), order)
            product = b.fmul(b.sitofp(b.bitcast(words, self.words), self.numbers), scale)
            low.append(b.bitcast(b.fadd(product, low_end), self.words))
            high.append(b.bitcast(b.fadd(product, high_end), self.words))
        bottom, top = self.upper(low), self.upper(high)
        outer = [None, None] if WIDER[self.bits] == 0 else self.outermost(run, top)
        return [list(part) for part in zip(bottom, top, outer, strict=True)]

    def upper(self, parts: list[Any]) -> list[Any]:
        """The upper halves of four vectors of words, as a pair."""
        b, sixteen, count = self.b, self.all(self.words, 16), self.width // 2
        evens = [b.bitcast(b.lshr(v, sixteen), self.halves) for v in parts[::2]]
        order = [place for i in range(0, count, 2) for place in (i, count + 1 + i)]
        return [self.pick(even, b.bitcast(odd, self.halves), order) for even, odd in zip(evens, parts[1::2], strict=True)]

    def outermost(self, run: Any, tops: list[Any]) -> list[Any]:
        """Which rows' code is the first, if the upper end is below zero, else the last."""
        codes = self.unpacked(run, self.all(self.run, 0))
        last = self.all(self.halves, (1 << self.bits) - 1)
        ends = [self.b.and_(last, self.b.xor(self.negative(top), self.all(self.halves, -1))) for top in tops]
        return [self.b.sext(self.b.icmp_signed("==", x, end), self.halves) for x, end in zip(codes, ends, strict=True)]

    def bins(self, bottom: Any, top: Any, outer: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Of a vector of rows: negative where the bin straddles zero; elsewhere negative where its lower end is the far one; its
        largest place without the dense bits (where it straddles, one that has all bits); and both ends."""
        b = self.b
        differ = b.xor(bottom, top)
        # Where both ends have one sign, magnitudes compare and differ as these do. Where not, both are at most as large as a scale,
        # so that their magnitudes together are more than 2**10 short of the 2**15 that their signs are apart.
        span = b.sub(top, bottom)
        most = b.sub(self.intrinsic(f"llvm.abs.v{self.width // 2}i16", self.halves, span, BIT(0)), self.all(self.halves, -1))
        if outer is not None:
            wider, below = b.and_(outer, self.all(self.halves, WIDER[self.bits])), self.negative(span)
            most = b.add(most, wider)
            own = b.and_(wider, b.xor(self.negative(differ), self.all(self.halves, -1)))
            bottom, top = b.add(bottom, b.and_(own, below)), b.add(top, b.sub(own, b.and_(own, below)))
        return differ, span, b.lshr(most, self.all(self.halves, self.dense)), bottom, top

    def write(self, kept: Any, dense: Any, block: Any) -> None:
        """Write a column's weights from what was kept of it."""
        b = self.b
        turned = self.turned(kept)
        if self.dense >= 4:
            pairs = zip(turned, self.nibbles(dense), strict=True)
            low = [b.or_(b.and_(t, self.all(self.run, -16)), four) for t, four in pairs]
            high = turned
        else:
            low, high = turned, self.turned(self.at(kept, 64))
        for n in range(64 // self.width):
            found = []
            for i, both in enumerate(self.unpacked(low[n], high[n])):
                lower, upper = (self.load(self.end_at(kept, n, i, k), self.halves, self.width) for k in (0, 1))
                counts = b.icmp_unsigned("!=", b.and_(both, self.all(self.halves, LOWER)), self.all(self.halves, 0))
                end = b.select(counts, lower, upper)
                found.append(b.sub(b.sub(end, b.and_(both, self.all(self.halves, PLACE))), self.all(self.halves, -1)))
            for part, weights in enumerate(self.natural(found)):
                self.store(weights, self.at(block, self.width * (2 * n + part)))

    def turned(self, kept: Any) -> list[Any]:
        """Eight masks of 64 rows as a byte a row, whose bit i is that of mask i: in vectors."""
        if self.width == 64:
            masks = self.load(kept, self.run, 64)
            return [self.transposed(self.pick(masks, masks, [8 * mask + i for i in range(8) for mask in range(8)]))]
        pairs = [lane + 8 * second + i for lane in (0, 16) for i in range(8) for second in (0, 1)]
        vectors = [self.load(self.at(kept, 32 * k), self.run, 32) for k in (0, 1)]
        vectors = [self.b.bitcast(self.pick(v, v, pairs), self.halves) for v in vectors]
        found = []
        for first in (0, 4):
            order = [lane + first + i + 16 * second for lane in (0, 8) for i in range(4) for second in (0, 1)]
            fours = self.b.bitcast(self.pick(vectors[0], vectors[1], order), self.words)
            found.append(self.transposed(self.pick(fours, fours, [0, 4, 1, 5, 2, 6, 3, 7])))
        return found
