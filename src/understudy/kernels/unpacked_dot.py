"""Integer dot products of several rows with a group of columns, whose codes are unpacked into the first cache once for all rows.

For processors that multiply bytes and have 16 registers (AVX2, AVX-VNNI): these hold neither the codes of a few columns nor the
sums of a few rows for all 64 outputs, so `dot` would unpack codes anew for some outputs after others, or keep its sums in
memory. Here 8 registers hold the sums of four rows for 16 outputs, in 16 bits as long as they fit. All sums are those of `dot`,
and so are the bits of what they are added to. Codes of 8 bits gain nothing so on AVX2: their halves alone fit into 16 bits."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from numba import types
from numba.extending import intrinsic

from .byte_dot import ByteDot, BytesDot, LargeBytesDot, VnniDot
from .dot import GroupDot, Lines, best
from .vector import FLOAT, FLOATS, HALF, LONG, WORD, WORDS, Vector

# the most columns of a group, and where in the room their scales are: behind their codes, a byte each
MOST_COLUMNS = 64
SCALES = 64 * MOST_COLUMNS
# bytes of the room
ROOM = SCALES + 2 * 256
EIGHT = Vector(WORD, 8)


def applies(bits: int) -> bool:
    """Whether codes of so many bits are unpacked for several rows on the machine that numba compiles for."""
    return best(bits) in (BytesDot, LargeBytesDot, VnniDot)


def unpack_group(bits: int, ahead: int = 0, way: type[ByteDot] | None = None) -> Any:
    """Code for use in a kernel: put the codes of `columns` columns (a multiple of 4, MOST_COLUMNS at most) at `room`, ROOM bytes
    from a multiple of 64 on, and the `scales` of their group, which lie as `dot.group_dot` takes them, SCALES bytes further.

    `way` will multiply them, in place of the fastest one. Memory is asked for the codes that lie `ahead` bytes behind those; 0: for
    none. All but `columns` are addresses."""

    @intrinsic
    def unpack(typing: Any, codes: Any, columns: Any, scales: Any, room: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Unpack(context, builder, bits, ahead, way or best(bits), *arguments).unpack()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return unpack


def rows_dot(bits: int, rows: int, way: type[ByteDot] | None = None) -> Any:
    """Code for use in a kernel: what `dot.group_dot` adds to `out`, from codes and scales that `unpack_group` put in a room. The 64
    outputs of a row lie as unpacked codes do: `in_order` puts them in their own order."""

    @intrinsic
    def add_group(typing: Any, codes: Any, x: Any, stride: Any, columns: Any, scales: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _RowsDot(context, builder, bits, rows, way or best(bits), 0, *arguments).add_all()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return add_group


def in_order(bits: int, way: type[ByteDot] | None = None) -> Any:
    """Code for use in a kernel: put the outputs of `count` rows of 64 float32 at `out`, to which `rows_dot` adds, in order."""

    @intrinsic
    def put(typing: Any, out: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Unpack(context, builder, bits, 0, way or best(bits), *[LONG(0)] * 4)
            with code.over(arguments[1], 1) as (row, _):
                code.put_in_order(code.at(arguments[0], builder.shl(row, LONG(8))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 2), generate

    return put


class _Unpack(GroupDot):
    """The code of one `unpack_group`, or of one `in_order`."""

    def __init__(
        self, context: Any, builder: Any, bits: int, ahead: int, way: type[ByteDot] | None, codes: Any, columns: Any, *more: Any
    ) -> None:
        scales, self.into = more
        none = LONG(0)
        super().__init__(context, builder, bits, 0, way, ahead, codes, none, none, columns, scales, none, none)

    def unpack(self) -> None:
        """Put all codes and scales in the room."""
        with self.over(self.columns, 4) as (column, _):
            self.ask(column, 4)
            into = self.at(self.into, self.b.mul(column, LONG(64)))
            for v, (codes, place) in enumerate(zip(self.quad(column), self.places, strict=True)):
                self.store(self.b.lshr(codes, self.all(WORDS, place)) if place else codes, self.at(into, 64 * v), 64)
        for v in range(4):
            for i, numbers in enumerate(self.factors(v)):
                self.store(numbers, self.at(self.into, SCALES + 256 * i + 64 * v), 64)

    def put_in_order(self, row: Any) -> None:
        """Put the 64 float32 at `row` where their outputs are."""
        parts = [self.load(self.at(row, 16 * i), Vector(FLOAT, 4), 4) for i in range(16)]
        for part, first in zip(parts, chain(*map(self.outputs, range(4))), strict=True):
            self.store(part, self.at(row, 4 * first), 4)


class _RowsDot(GroupDot):
    """The code of one `rows_dot`."""

    @property
    def held_kind(self) -> Any:
        """What is held of eight sums while quads are added."""
        return Vector(HALF, 16) if isinstance(self.way, BytesDot) else EIGHT

    def added(self, held: Any, codes: Any, x: Any) -> Any:
        """What is held of eight sums after a quad more."""
        if isinstance(self.way, BytesDot):
            return self.b.add(held, self.way.pairs(codes, x))
        assert isinstance(self.way, VnniDot)
        return self.way.one(held, codes, x)

    def let_go(self, held: Any) -> Any:
        """Eight sums from what was held of them."""
        return self.way.whole(held) if isinstance(self.way, BytesDot) else held

    def turns(self) -> list[list[int]]:
        at_once = 4 // min(self.rows, 4)
        return [list(range(first, first + at_once)) for first in range(0, 4, at_once)]

    def outputs(self, v: int) -> list[int]:
        return [16 * v + 4 * i for i in range(4)]

    def factors(self, v: int) -> tuple[Any, Any]:
        return tuple(self.load(self.at(self.scales, 256 * i + 64 * v), FLOATS, 64) for i in (0, 1))

    def sums(self, vectors: list[int]) -> Lines:
        totals = self.whole_sums([2 * v + half for v in vectors for half in (0, 1)])
        whole = [self.b.sitofp(self.beside(*pair), FLOATS) for pair in zip(totals[::2], totals[1::2], strict=True)]
        return [whole[r * len(vectors) : (r + 1) * len(vectors)] for r in range(self.rows)]

    def whole_sums(self, eights: list[int]) -> Sequence[Any]:
        """The sums of all rows for some times eight outputs, as integers of 32 bits."""
        # as many columns as sums of 16 bits take of codes up to the largest
        fit = 32767 // (2 * 127 * (2**self.bits - 1)) if isinstance(self.way, BytesDot) else MOST_COLUMNS
        span = 4 * min(fit, MOST_COLUMNS // 4)
        b, count = self.b, self.rows * len(eights)
        spans = b.udiv(self.at(self.columns, span - 1), LONG(span))

        def of_span(i: Any, totals: Sequence[Any]) -> Sequence[Any]:
            first = b.mul(i, LONG(span))
            left = b.sub(self.columns, first)
            quads = b.lshr(b.select(b.icmp_unsigned("<", left, LONG(span)), left, LONG(span)), LONG(2))

            def of_quad(q: Any, held: Sequence[Any]) -> Sequence[Any]:
                return self.with_quad(self.at(first, b.shl(q, LONG(2))), eights, held)

            held = self.repeated(quads, [self.all(self.held_kind, 0)] * count, of_quad)
            return [b.add(total, self.let_go(own)) for total, own in zip(totals, held, strict=True)]

        return self.repeated(spans, [self.all(EIGHT, 0)] * count, of_span)

    def with_quad(self, column: Any, eights: list[int], held: Sequence[Any]) -> list[Any]:
        """What is held of `whole_sums` after the quad at `column`."""
        place = self.at(self.codes, self.b.mul(column, LONG(64)))
        quads = [self.load(self.at(place, 32 * each), EIGHT, 32) for each in eights]
        following = []
        for r in range(self.rows):
            x = self.spread(self.load(self.row(r, column), WORD), 8)
            own = held[r * len(eights) : (r + 1) * len(eights)]
            following += [self.added(total, numbers, x) for total, numbers in zip(own, quads, strict=True)]
        return following
