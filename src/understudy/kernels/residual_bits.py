"""What a code of 2, 3 or 4 bits leaves open of a bfloat16 weight, in as few bits as its bin needs: vector code to write and to
read it.

A code stands for a bin of values: (q - centre - 0.5) * scale + zero to (q - centre + 0.5) * scale + zero. Bfloat16 magnitudes
are ordered as their bit patterns, so a weight is its place in the bin, counted from the bin's far end: the bins that hold most
weights are those with few patterns. A bin of m + 1 patterns takes as many bits as m has (DENSE at least, 10 at most); where it
straddles zero, a bit for the side and 10 bits. What falls outside is an exception, listed apart. The fewer the bits of a code,
the more weights lie beyond its outermost bins, so these go on outwards by WIDER patterns.

For each column of a block, in the dense part: the low 4 bits of all 64 rows (32 bytes, as codes of 4 bits are packed), then bit
4 of all (8 bytes), and so on up to DENSE; in the stream, for the rows that have one, the side (1: not that of the upper end),
then the next bit, ... bit 9, rows in order.

Bin ends are computed in float32 by one fixed order of operations, never fused, and cut to their upper 16 bits."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .codes import Codes
from .vector import BIT, BYTE, FLOAT, HALF, LONG, WORD, Vector, has

DENSE = {2: 7, 3: 6, 4: 5}  # bits every weight has, by bits of a code: 8 bytes each for a column of 64 rows
MOST = 10  # bits the widest bin has
WIDER = {2: 112, 3: 48, 4: 0}  # patterns (128 are a doubling) by which the outermost bins are wider than the others
HALVES, WORDS, FLOATS, RUN = Vector(HALF, 32), Vector(WORD, 16), Vector(FLOAT, 16), Vector(BYTE, 32)
Pair = list[Any]  # of vectors of 32: rows 0 to 31, rows 32 to 63


def is_fast() -> bool:
    """Whether this machine has the instructions the code is laid out for; it runs without them, slowly."""
    return has("avx512bw", "avx512vl", "bmi2")


def tile_reader(bits: int) -> Any:
    """Code for use in a kernel: blocks from dense part and stream, `columns` columns of one group. Returns the bit of the stream
    after the last.

    `scales` holds a word a row, (scale, zero) in bfloat16; `start` is a bit of the stream; the others are addresses."""

    @intrinsic
    def read_tile(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, blocks = arguments
            code = _Tile(context, builder, bits, scales)
            column, (place,), finish = code.loop(columns, [start])
            bins = code.bins(code.at(codes, builder.mul(column, LONG(8 * bits))))
            dense = code.at(dense, builder.mul(column, LONG(8 * code.dense)))
            after = code.read(bins, dense, stream, place, column, blocks)
            finish([after])
            return after

        return types.int64(*[types.int64] * 7), generate

    return read_tile


def tile_writer(bits: int) -> Any:
    """The reverse of `tile_reader`, into zeroed memory; at `odd`, 64 bits a column, bit j where row j is an exception."""

    @intrinsic
    def write_tile(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any, odd: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, blocks, odd = arguments
            code = _Tile(context, builder, bits, scales)
            column, (place,), finish = code.loop(columns, [start])
            bins = code.bins(code.at(codes, builder.mul(column, LONG(8 * bits))))
            dense = code.at(dense, builder.mul(column, LONG(8 * code.dense)))
            odd = code.at(odd, builder.shl(column, LONG(3)))
            after = code.write(bins, dense, stream, place, code.at(blocks, builder.shl(column, LONG(7))), odd)
            finish([after])
            return after

        return types.int64(*[types.int64] * 8), generate

    return write_tile


class _Bins:
    """The bins of a column's 64 codes, as pairs of vectors of 16-bit patterns."""

    def __init__(self, low: Pair, high: Pair, top: Pair, far: Pair, most: Pair, straddles: Pair) -> None:
        self.low, self.high, self.top = low, high, top  # magnitudes at both ends; the upper end with its sign
        self.far, self.most = far, most  # the larger magnitude, and the largest place in the bin
        self.straddles = straddles  # rows whose bin holds both signs


class _Tile(Codes):
    """Code for the columns of one group of one block."""

    def __init__(self, context: Any, builder: Any, bits: int, scales: Any) -> None:
        super().__init__(context, builder, bits)
        b, self.ends, self.dense = builder, [], DENSE[bits]
        offsets = (1 << bits - 1) + 0.5, (1 << bits - 1) - 0.5
        for v in range(4):
            word = self.load(self.at(scales, 64 * v), WORDS, 4)
            scale = b.bitcast(b.shl(word, self.all(WORDS, 16)), FLOATS)
            zero = b.bitcast(b.and_(word, self.all(WORDS, -65536)), FLOATS)
            low, high = (b.fsub(zero, b.fmul(self.all(FLOATS, offset), scale)) for offset in offsets)
            self.ends.append((scale, low, high))

    def loop(self, count: Any, carried: list[Any]) -> Any:
        """Start a loop: its counter, the carried values, and what ends it, given the next of them."""
        before = self.b.block
        body, done = self.b.append_basic_block("columns"), self.b.append_basic_block("done")
        self.b.branch(body)
        self.b.position_at_end(body)
        counter, *values = (self.b.phi(LONG) for _ in range(1 + len(carried)))
        for phi, first in zip([counter, *values], [LONG(0), *carried], strict=True):
            phi.add_incoming(first, before)

        def finish(following: list[Any]) -> None:
            after, last = self.at(counter, 1), self.b.block
            for phi, value in zip([counter, *values], [after, *following], strict=True):
                phi.add_incoming(value, last)
            self.b.cbranch(self.b.icmp_unsigned("<", after, count), body, done)
            self.b.position_at_end(done)

        return counter, values, finish

    def nibbles(self, address: Any) -> Pair:
        run = self.load(address, RUN)
        return [self.b.and_(run, self.all(RUN, 15)), self.b.lshr(run, self.all(RUN, 4))]

    def bins(self, address: Any) -> _Bins:
        b, low, high = self.b, [], []
        codes = self.column(address)
        for sixteen, (scale, low_end, high_end) in zip(codes, self.ends, strict=True):
            product = b.fmul(b.uitofp(sixteen, FLOATS), scale)
            low.append(b.fadd(product, low_end))
            high.append(b.fadd(product, high_end))
        bottom, top = self.upper(low), self.upper(high)
        straddles = [b.icmp_signed("<", b.xor(x, y), self.all(HALVES, 0)) for x, y in zip(bottom, top, strict=True)]
        lower, higher = ([b.and_(x, self.all(HALVES, 0x7FFF)) for x in end] for end in (bottom, top))
        far, most = [], []
        wider = self.outermost(codes, top) if WIDER[self.bits] else [None, None]
        for x, y, straddle, outer in zip(lower, higher, straddles, wider, strict=True):
            larger, smaller = (self.intrinsic(f"llvm.{name}.v32i16", HALVES, x, y) for name in ("umax", "umin"))
            if outer is not None:
                larger = b.select(outer, b.add(larger, self.all(HALVES, WIDER[self.bits])), larger)
            far.append(larger)
            places = b.add(b.sub(larger, smaller), self.all(HALVES, 1))
            most.append(b.select(straddle, self.all(HALVES, (1 << MOST) - 1), places))
        return _Bins(lower, higher, top, far, most, straddles)

    def outermost(self, codes: list[Any], top: Pair) -> Pair:
        """The rows with the last code on the side of their bin's upper end: the first below zero, else the last."""
        b, last = self.b, (1 << self.bits) - 1
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
        """64 bits from two vectors of 32."""
        low, high = (self.b.zext(self.b.bitcast(part, WORD), LONG) for part in pair)
        return self.b.or_(low, self.b.shl(high, LONG(32)))

    def rows(self, mask: Any) -> Pair:
        """Two vectors of 32 from 64 bits."""
        parts = self.b.trunc(mask, WORD), self.b.trunc(self.b.lshr(mask, LONG(32)), WORD)
        return [self.b.bitcast(part, Vector(BIT, 32)) for part in parts]

    def having(self, bins: _Bins, bit: int) -> Any:
        """The rows whose place in the bin has this bit."""
        return self.mask([self.b.icmp_unsigned(">=", most, self.all(HALVES, 1 << bit)) for most in bins.most])

    def far_end(self, bins: _Bins, below: Any) -> Pair:
        """The end to count from: where a bin straddles zero, the one on the weight's own side."""
        ends = zip(self.rows(below), bins.low, bins.high, bins.far, bins.straddles, strict=True)
        return [self.b.select(s, self.b.select(n, low, high), far) for n, low, high, far, s in ends]

    def read(self, bins: _Bins, dense: Any, stream: Any, place: Any, column: Any, blocks: Any) -> Any:
        b = self.b
        below, place = self.take(stream, place, self.mask(bins.straddles))
        first, second = self.nibbles(dense)
        low = self.pick(first, second, list(range(64)))
        for bit in range(4, self.dense):
            low = self.more(low, self.load(self.at(dense, 8 * bit), LONG), bit)
        for bit in range(self.dense, 8):  # bits that fit a byte: all 64 rows at once
            bits, place = self.take(stream, place, self.having(bins, bit))
            low = self.more(low, bits, bit)
        halves = [b.zext(self.pick(low, low, list(range(first, first + 32))), HALVES) for first in (0, 32)]
        ends = zip(self.far_end(bins, below), halves, strict=True)
        found = [b.sub(b.add(far, self.all(HALVES, 1)), half) for far, half in ends]
        for bit in range(8, MOST):
            bits, place = self.take(stream, place, self.having(bins, bit))
            found = self.less(found, bits, bit)
        for half, (value, top, row) in enumerate(zip(found, bins.top, self.rows(below), strict=True)):
            sign = b.select(row, b.add(top, self.all(HALVES, -0x8000)), top)
            signed = b.or_(value, b.and_(sign, self.all(HALVES, -0x8000)))
            self.store(signed, self.at(self.at(blocks, b.shl(column, LONG(7))), 64 * half))
        return place

    def more(self, values: Any, mask: Any, bit: int) -> Any:
        """values + 2 ** bit, bytes, in the rows of `mask`."""
        rows = self.b.bitcast(mask, Vector(BIT, 64))
        return self.b.select(rows, self.b.add(values, self.all(values.type, (1 << bit) - (bit == 7) * 256)), values)

    def less(self, values: Pair, mask: Any, bit: int) -> Pair:
        """values - 2 ** bit in the rows of `mask`."""
        by = self.all(HALVES, 1 << bit)
        pairs = zip(self.rows(mask), values, strict=True)
        return [self.b.select(row, self.b.sub(value, by), value) for row, value in pairs]

    def take(self, stream: Any, place: Any, mask: Any) -> tuple[Any, Any]:
        """The next bits of the stream, one for each row of `mask`, at their rows; and the place after them."""
        b = self.b
        address, shift = self.at(stream, b.lshr(place, LONG(3))), b.and_(place, LONG(7))
        bits = b.lshr(self.load(address, LONG), shift)
        bits = b.or_(bits, b.shl(self.load(self.at(address, 1), LONG), b.sub(LONG(8), shift)))
        if has("bmi2"):
            spread = self.intrinsic("llvm.x86.bmi.pdep.64", LONG, bits, mask)
        else:
            spread = self.ours(_deposit, bits, mask)
        return spread, b.add(place, self.intrinsic("llvm.ctpop.i64", LONG, mask))

    def put(self, stream: Any, place: Any, bits: Any, mask: Any) -> Any:
        """Append the bits in the rows of `mask`; returns the place after them."""
        b = self.b
        address, shift = self.at(stream, b.lshr(place, LONG(3))), b.and_(place, LONG(7))
        if has("bmi2"):
            packed = self.intrinsic("llvm.x86.bmi.pext.64", LONG, bits, mask)
        else:
            packed = self.ours(_extract, bits, mask)
        self.store(b.or_(self.load(address, LONG), b.shl(packed, shift)), address)
        rest = b.lshr(b.lshr(packed, LONG(1)), b.sub(LONG(63), shift))
        self.store(b.trunc(rest, BYTE), self.at(address, 8))
        return b.add(place, self.intrinsic("llvm.ctpop.i64", LONG, mask))

    def write(self, bins: _Bins, dense: Any, stream: Any, place: Any, blocks: Any, odd: Any) -> Any:
        b, straddles = self.b, self.mask(bins.straddles)
        weights = [self.load(self.at(blocks, 64 * half), HALVES) for half in range(2)]
        differs = [b.xor(w, top) for w, top in zip(weights, bins.top, strict=True)]
        below = self.mask([b.icmp_signed("<", x, self.all(HALVES, 0)) for x in differs])
        magnitudes = [b.and_(w, self.all(HALVES, 0x7FFF)) for w in weights]
        ends = zip(self.far_end(bins, below), magnitudes, strict=True)
        places = [b.sub(b.add(far, self.all(HALVES, 1)), m) for far, m in ends]
        fits = self.mask([b.icmp_unsigned("<", x, y) for x, y in zip(places, self.limits(bins), strict=True)])
        fits = b.and_(fits, b.or_(straddles, b.not_(below)))
        self.store(b.not_(fits), odd)
        low = [b.trunc(b.and_(x, self.all(HALVES, 15)), RUN) for x in places]
        self.store(b.or_(low[0], b.shl(low[1], self.all(RUN, 4))), dense)
        for bit in range(4, self.dense):
            self.store(self.bit_of(places, bit), self.at(dense, 8 * bit))
        place = self.put(stream, place, below, straddles)
        for bit in range(self.dense, MOST):
            place = self.put(stream, place, self.bit_of(places, bit), self.having(bins, bit))
        return place

    def limits(self, bins: _Bins) -> Pair:
        """The first place that the bits of a row cannot say."""
        limits = [self.all(HALVES, 1 << self.dense)] * 2
        for bit in range(self.dense, MOST):
            rows, by = self.rows(self.having(bins, bit)), self.all(HALVES, 2 << bit)
            limits = [self.b.select(row, by, limit) for row, limit in zip(rows, limits, strict=True)]
        return limits

    def bit_of(self, values: Pair, bit: int) -> Any:
        """64 bits: this bit of each row's value."""
        one = self.all(HALVES, 1 << bit)
        return self.mask([self.b.icmp_unsigned("!=", self.b.and_(v, one), self.all(HALVES, 0)) for v in values])


def _deposit(bits: int, mask: int) -> int:
    """The low bits of `bits` moved to the places where `mask` has a 1, in order."""
    made, row = 0, 0
    while mask != 0:
        if mask & 1:
            made |= (bits & 1) << row
            bits >>= 1
        mask = mask >> 1 & 0x7FFFFFFFFFFFFFFF
        row += 1
    return made


def _extract(bits: int, mask: int) -> int:
    """The bits at the places where `mask` has a 1, moved together."""
    made, count = 0, 0
    while mask != 0:
        if mask & 1:
            made |= (bits & 1) << count
            count += 1
        mask, bits = mask >> 1 & 0x7FFFFFFFFFFFFFFF, bits >> 1
    return made
