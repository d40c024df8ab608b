"""What a code leaves open of a bfloat16 weight, in as few bits as its bin needs (`bins`): vector code to write and to
read it.

For each column of a block, in the dense part: the low 4 bits of the places of all 64 rows (32 bytes, as codes of 4
bits are packed), then bit 4 of all (8 bytes), and so on up to DENSE (where that is less than 4: bit 0 of all, bit 1 of all, and so
on); in the stream, for the rows that have one, the
side (1: not that of the upper end), then the next bit, ... bit 9, rows in order. A weight outside its code's bin is an
exception, listed apart."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .bins import HALVES, MOST, RUN, BinCode, Bins, Pair
from .bit_stream import append_bits, fetch_ahead, take_bits
from .residual_packed import PackedTile, packs, widest
from .vector import BIT, BYTE, LONG, Vector


def tile_reader(bits: int) -> Any:
    """Code for use in a kernel: makes `columns` columns of one group at `blocks` from dense part and stream.

    `scales`: (scale, zero) of each row, in bfloat16; `start`: the first bit of the stream; all but `columns` and
    `start` are addresses. Returns the bit of the stream after the last one read."""

    @intrinsic
    def read_tile(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, blocks = arguments
            if packs():
                tile = PackedTile(context, builder, bits, scales, widest())
                return tile.read(codes, dense, stream, start, columns, blocks)
            code = _TileCode(context, builder, bits, scales)
            column, place, finish = code.loop(columns, start)
            codes = code.at(codes, builder.mul(column, LONG(8 * bits)))
            dense = code.at(dense, builder.mul(column, LONG(8 * code.dense)))
            fetch_ahead(code, stream, place, [(codes, 8 * bits), (dense, 8 * code.dense)])
            bins = code.bins(codes)
            after = code.read(bins, dense, stream, place, code.at(blocks, builder.shl(column, LONG(7))))
            finish(after)
            return after

        return types.int64(*[types.int64] * 7), generate

    return read_tile


def tile_writer(bits: int) -> Any:
    """The reverse of `tile_reader`, into zeroed memory; at `odd`, 64 bits a column, bit j where row j is an
    exception."""

    @intrinsic
    def write_tile(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any, odd: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, blocks, odd = arguments
            code = _TileCode(context, builder, bits, scales)
            column, place, finish = code.loop(columns, start)
            bins = code.bins(code.at(codes, builder.mul(column, LONG(8 * bits))))
            dense = code.at(dense, builder.mul(column, LONG(8 * code.dense)))
            odd = code.at(odd, builder.shl(column, LONG(3)))
            after = code.write(bins, dense, stream, place, code.at(blocks, builder.shl(column, LONG(7))), odd)
            finish(after)
            return after

        return types.int64(*[types.int64] * 8), generate

    return write_tile


class _TileCode(BinCode):
    """Code that reads and writes the columns of one group of one block."""

    @property
    def nibbles(self) -> int:
        """How many of a place's low bits lie together in the dense part, two rows a byte: 4 or none."""
        return 4 if self.dense >= 4 else 0

    def loop(self, count: Any, first: Any) -> Any:
        """Start a loop over `count` columns: its counter, the place in the stream, and what ends it, given the next
        place."""
        before = self.b.block
        body, done = self.b.append_basic_block("columns"), self.b.append_basic_block("done")
        self.b.branch(body)
        self.b.position_at_end(body)
        counter, place = self.b.phi(LONG), self.b.phi(LONG)
        counter.add_incoming(LONG(0), before)
        place.add_incoming(first, before)

        def finish(following: Any) -> None:
            after, last = self.at(counter, 1), self.b.block
            counter.add_incoming(after, last)
            place.add_incoming(following, last)
            self.b.cbranch(self.b.icmp_unsigned("<", after, count), body, done)
            self.b.position_at_end(done)

        return counter, place, finish

    def read(self, bins: Bins, dense: Any, stream: Any, place: Any, block: Any) -> Any:
        """The column's weights at the address `block`; returns the place in the stream after it."""
        b = self.b
        below, place = take_bits(self, stream, place, self.mask(bins.straddles))
        low, place = self.low_bytes(bins, dense, stream, place)
        found = []
        for end, first in zip(self.far_end(bins, below), (0, 32), strict=True):
            half = b.zext(self.pick(low, low, list(range(first, first + 32))), HALVES)
            found.append(b.sub(b.add(end, self.all(HALVES, 1)), half))
        for bit in range(8, MOST):
            bits, place = take_bits(self, stream, place, self.having(bins, bit))
            found = self.less(found, bits, bit)
        for half, (value, top, row) in enumerate(zip(found, bins.top, self.rows(below), strict=True)):
            sign = b.select(row, b.add(top, self.all(HALVES, -0x8000)), top)
            signed = b.or_(value, b.and_(sign, self.all(HALVES, -0x8000)))
            self.store(signed, self.at(block, 64 * half))
        return place

    def low_bytes(self, bins: Bins, dense: Any, stream: Any, place: Any) -> tuple[Any, Any]:
        """Bits 0 to 7 of each row's place in its bin, a byte a row, all 64 at once; and the place in the stream after
        them."""
        b = self.b
        low = self.all(Vector(BYTE, 64), 0)
        if self.nibbles:
            run = self.load(dense, RUN)
            nibbles = [b.and_(run, self.all(RUN, 15)), b.lshr(run, self.all(RUN, 4))]
            low = self.pick(nibbles[0], nibbles[1], list(range(64)))
        for bit in range(self.nibbles, self.dense):
            low = self.more(low, self.load(self.at(dense, 8 * bit), LONG), bit)
        for bit in range(self.dense, 8):
            bits, place = take_bits(self, stream, place, self.having(bins, bit))
            low = self.more(low, bits, bit)
        return low, place

    def more(self, values: Any, mask: Any, bit: int) -> Any:
        """values + 2 ** bit, bytes, in the rows of `mask`."""
        rows = self.b.bitcast(mask, Vector(BIT, 64))
        return self.b.select(rows, self.b.add(values, self.all(values.type, (1 << bit) - (bit == 7) * 256)), values)

    def less(self, values: Pair, mask: Any, bit: int) -> Pair:
        """values - 2 ** bit in the rows of `mask`."""
        by = self.all(HALVES, 1 << bit)
        pairs = zip(self.rows(mask), values, strict=True)
        return [self.b.select(row, self.b.sub(value, by), value) for row, value in pairs]

    def write(self, bins: Bins, dense: Any, stream: Any, place: Any, block: Any, odd: Any) -> Any:
        """Dense part, stream and exceptions of the column at the address `block`; returns the place in the stream
        after it."""
        b, straddles = self.b, self.mask(bins.straddles)
        weights = [self.load(self.at(block, 64 * half), HALVES) for half in range(2)]
        differs = [b.xor(w, top) for w, top in zip(weights, bins.top, strict=True)]
        below = self.mask([b.icmp_signed("<", x, self.all(HALVES, 0)) for x in differs])
        magnitudes = [b.and_(w, self.all(HALVES, 0x7FFF)) for w in weights]
        ends = zip(self.far_end(bins, below), magnitudes, strict=True)
        places = [b.sub(b.add(far, self.all(HALVES, 1)), m) for far, m in ends]
        fits = self.mask([b.icmp_unsigned("<", x, y) for x, y in zip(places, self.limits(bins), strict=True)])
        fits = b.and_(fits, b.or_(straddles, b.not_(below)))
        self.store(b.not_(fits), odd)
        if self.nibbles:
            low = [b.trunc(b.and_(x, self.all(HALVES, 15)), RUN) for x in places]
            self.store(b.or_(low[0], b.shl(low[1], self.all(RUN, 4))), dense)
        for bit in range(self.nibbles, self.dense):
            self.store(self.bit_of(places, bit), self.at(dense, 8 * bit))
        place = append_bits(self, stream, place, below, straddles)
        for bit in range(self.dense, MOST):
            place = append_bits(self, stream, place, self.bit_of(places, bit), self.having(bins, bit))
        return place

    def limits(self, bins: Bins) -> Pair:
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
