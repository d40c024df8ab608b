"""Integer dot products of a few rows with a group of columns of one block of codes, as vector code.

Codes lie as `kernels.pack` says; activations are int8. Four columns of 4 to 16 rows are one to six instructions (`byte_dot`); where
a processor has none of these, the same sums are made in float32, which holds them exactly (they stay below 2**24), so every
machine gives the same bits. Codes of 2 and 3 bits are multiplied where they stand in their bytes, 4, 16 or 64 times
too large, and the sums divided."""

from itertools import chain
from typing import Any

from numba import types
from numba.extending import intrinsic

from .byte_dot import WAYS, ByteDot, way
from .codes import Codes
from .instructions import has
from .vector import BYTE, FLOAT, FLOATS, LONG, WORD, WORDS, Vector

RUN = Vector(BYTE, 64)
# the code that stands for the group's zero
CENTRE = {2: 2, 3: 4, 4: 8, 6: 32, 8: 128}
# the bit of its byte at which `GroupDot.quad` leaves a code: of rows 0 to 15, 16 to 31, and so on
PLACES = {2: (0, 2, 4, 6), 3: (0, 2, 4, 4), 4: (0, 0, 0, 0), 6: (0, 0, 0, 0), 8: (0, 0, 0, 0)}
# for each row of x, four vectors of 16 sums
Lines = list[list[Any]]


# the same where codes above 28 may be too large
LOW_PLACES = {**PLACES, 2: (0, 2, 0, 2), 3: (0, 2, 0, 0)}


def best(bits: int) -> type[ByteDot] | None:
    """The fastest way to multiply codes of so many bits where they stand; None: in float32."""
    return way(max((2**bits - 1) << place for place in LOW_PLACES[bits]))


def group_dot(bits: int, rows: int, name: str | None = None, ahead: int = 0) -> Any:
    """Code for use in a kernel: add to `rows` times 64 float32 at `out` the products of `rows` rows of int8 at `x`
    (rows `stride` bytes apart) with `columns` columns (a multiple of 4) of the block's codes.

    `name`: which `ByteDot` multiplies ("float32": none), in place of the fastest one. Memory is asked for the codes that lie
    `ahead` bytes behind those that are multiplied; 0: for none.
    `scales` holds a word a row, (scale, zero) in bfloat16; `steps`, for each row of x, the step of its int8 and the
    step times their sum, in float32. All but `columns` and `stride` are addresses."""

    @intrinsic
    def add_group(typing: Any, codes: Any, x: Any, stride: Any, columns: Any, scales: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            chosen = best(bits) if name is None else next((each for each in WAYS if each.name == name), None)
            GroupDot(context, builder, bits, rows, chosen, ahead, *arguments).add_all()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return add_group


class GroupDot(Codes):
    """The code of one `add_group`."""

    def __init__(
        self, context: Any, builder: Any, bits: int, rows: int, way: type[ByteDot] | None, ahead: int, *arguments: Any
    ) -> None:
        super().__init__(context, builder, bits)
        self.rows, self.ahead = rows, ahead
        self.way = way(self) if way is not None else None
        # one instruction moves bytes from anywhere to anywhere; elsewhere bytes stay within 16 as long as they can
        self.anywhere = has("avx512vbmi")
        self.places = LOW_PLACES[bits] if way is not None and way.largest < 255 else PLACES[bits]
        self.codes, self.x, self.stride, self.columns, self.scales, self.steps, self.out = arguments

    def row(self, r: int, offset: Any) -> Any:
        """The address `offset` bytes into row r of x."""
        return self.at(self.at(self.x, self.b.mul(self.stride, LONG(r))), offset)

    def add_all(self) -> None:
        """Add all products: at once where registers hold the sums of all rows, or seldom change; else some outputs after others."""
        for vectors in self.turns():
            sums = self.sums(vectors)
            for v, line in zip(vectors, zip(*sums, strict=True), strict=True):
                self.epilogue(v, list(line))

    def turns(self) -> list[list[int]]:
        """The vectors of 16 outputs that are summed up in one go over the columns."""
        if self.way is None or self.way.holds_all or self.way.quads > 1 or self.rows == 1:
            return [[0, 1, 2, 3]]
        # both halves of a byte of 4 bits are used while it is there
        return [[0, 2], [1, 3]] if self.rows == 2 else [[v] for v in range(4)]

    def sums(self, vectors: list[int]) -> Lines:
        """The loop over columns, for these `vectors` of outputs: their sums as `FLOATS`."""
        kind, width = (FLOATS, 1) if self.way is None else (WORDS, 4 * self.way.quads)
        before = self.b.block
        loop, done = self.b.append_basic_block("columns"), self.b.append_basic_block("done")
        self.b.branch(loop)
        self.b.position_at_end(loop)
        column = self.b.phi(LONG)
        column.add_incoming(LONG(0), before)
        sums = [[self.b.phi(kind) for _ in vectors] for _ in range(self.rows)]
        following = (self.plain_step if self.way is None else self.byte_step)(column, sums, vectors)
        last = self.b.block
        for phi, value in zip(chain(*sums), chain(*following), strict=True):
            phi.add_incoming(self.all(kind, 0), before)
            phi.add_incoming(value, last)
        after = self.at(column, width)
        column.add_incoming(after, last)
        self.b.cbranch(self.b.icmp_unsigned("<", after, self.columns), loop, done)
        self.b.position_at_end(done)
        if self.way is None:
            return following
        return [[self.divided(total, v) for total, v in zip(line, vectors, strict=True)] for line in following]

    def divided(self, total: Any, v: int) -> Any:
        """Sums of codes in their places, of vector v, as sums of codes in float32."""
        place = self.places[v]
        return self.b.sitofp(self.b.ashr(total, self.all(WORDS, place)) if place else total, FLOATS)

    def byte_step(self, column: Any, sums: Lines, vectors: list[int]) -> Lines:
        """The sums after some quads more, as integers of 32 bits."""
        assert self.way is not None
        columns = [self.at(column, 4 * i) for i in range(self.way.quads)]
        # the first vector of a turn is its number
        self.ask(column, 4 * self.way.quads, vectors[0], len(vectors))
        quads = [self.quad(each) for each in columns]
        x = [[self.way.prepared(self.spread(self.load(self.row(r, each), WORD))) for each in columns] for r in range(self.rows)]
        following: Lines = [[] for _ in sums]
        for i, v in enumerate(vectors):
            for r, line in enumerate(sums):
                following[r].append(self.way.add(line[i], [q[v] for q in quads], x[r]))
        return following

    def ask(self, column: Any, count: int, turn: int = 0, vectors: int = 4) -> None:
        """Ask memory for the codes that lie `ahead` bytes behind those of `count` columns: in each of the `turns` for a share, by
        how many `vectors` of outputs it has."""
        if self.ahead:
            b, pace = self.b, 8 * self.bits * vectors // 4
            begin = b.mul(self.columns, LONG(turn * pace))
            place = self.at(self.at(self.codes, b.add(begin, b.mul(column, LONG(pace)))), self.ahead)
            for line in range(0, pace * count, 64):
                self.prefetch(self.at(place, line))

    def quad(self, column: Any) -> list[Any]:
        """The codes of four columns from `column` on, in their places: word j of vector v has row 16 v + j's, a byte each."""
        address = self.at(self.codes, self.b.mul(column, LONG(8 * self.bits)))
        read = {2: self.twos, 3: self.threes, 4: self.fours, 6: self.sixes, 8: self.eights}[self.bits]
        found = [self.b.bitcast(v, WORDS) for v in read(address)]
        down = zip(found, PLACES[self.bits], self.places, strict=True)
        return [self.b.lshr(v, self.all(WORDS, before - after)) if before > after else v for v, before, after in down]

    def eights(self, address: Any) -> list[Any]:
        if not self.anywhere:
            halves = [self.woven(address, 64, 32), self.woven(self.at(address, 32), 64, 32)]
            return [self.beside(*half[first : first + 2]) for half in halves for first in (0, 2)]
        runs = [self.load(self.at(address, 64 * t), RUN) for t in range(4)]
        return [self.turned(runs, 16 * v) for v in range(4)]

    def fours(self, address: Any) -> list[Any]:
        if self.anywhere:
            low, high = self.load(address, RUN), self.load(self.at(address, 64), RUN)
            turned = [self.pick(low, high, [32 * t + first + j for j in range(16) for t in range(4)]) for first in (0, 16)]
        else:
            turned = self.nibbles(address, 32)
        return self.halves(turned)

    def nibbles(self, address: Any, pitch: int) -> list[Any]:
        """Four columns of codes of 4 bits, `pitch` bytes apart, two codes a byte: two vectors."""
        parts = self.woven(address, pitch, 32)
        return [self.beside(*parts[:2]), self.beside(*parts[2:])]

    def halves(self, turned: list[Any]) -> list[Any]:
        """The low and then the high four bits of each byte, as bytes."""
        return [self.masked(v, 15) for v in turned] + [self.b.lshr(v, self.all(RUN, 4)) for v in turned]

    def sixes(self, address: Any) -> list[Any]:
        """The upper two bits of 16 rows' codes lie in one byte: moved to where they belong above the low four, those of a vector's
        first and second rows by different numbers."""
        b, low = self.b, self.halves(self.nibbles(address, 48))
        pairs = b.bitcast(self.beside(*self.woven(self.at(address, 32), 48, 16)), WORDS)
        fours = [[*range(first, first + 4)] for first in (0, 4, 8, 12)]
        rows = [self.pick(pairs, pairs, fours[i] * 2 + fours[i + 1] * 2) for i in (0, 2)]
        up, down = (self.constant(WORDS, ([x] * 4 + [y] * 4) * 2) for x, y in ((4, 2), (0, 2)))
        upper = [b.shl(v, up) for v in rows] + [b.lshr(v, down) for v in rows]
        return [b.or_(x, self.masked(b.bitcast(y, RUN), 48)) for x, y in zip(low, upper, strict=True)]

    def twos(self, address: Any) -> list[Any]:
        if self.anywhere:
            run = self.load(address, RUN)
            turned = self.pick(run, run, [16 * t + j for j in range(16) for t in range(4)])
        else:
            turned = self.beside(*self.woven(address, 16, 16))
        return [self.masked(turned, 3 << place) for place in PLACES[2]]

    def threes(self, address: Any) -> list[Any]:
        """Third bits are moved above the low two where those stand; the low two of the last 16 rows move down to make
        room. What a shift moves into the next byte is masked."""
        b = self.b
        if self.anywhere:
            runs = self.load(address, RUN), self.load(self.at(address, 32), RUN)
            # where each of the four columns begins in both runs, laid one after the other
            starts = [24 * t + 32 * (t > 1) for t in range(4)]
            low = self.pick(*runs, [starts[t] + j for j in range(16) for t in range(4)])
            high = self.pick(*runs, [starts[t] + 16 + j % 8 for j in range(16) for t in range(4)])
        else:
            low = self.beside(*self.woven(address, 24, 16))
            eight = self.beside(*self.woven(self.at(address, 16), 24, 8)[:2])
            high = self.pick(eight, eight, [*range(32)] * 2)
        third = b.bitcast(high, WORDS)
        up = b.shl(third, self.constant(WORDS, [2 - j // 8 for j in range(16)]))
        down = b.lshr(third, self.constant(WORDS, [j // 8 for j in range(16)]))
        lows = [low, low, low, b.bitcast(b.lshr(b.bitcast(low, WORDS), self.all(WORDS, 2)), RUN)]
        codes = []
        for v, place in enumerate(PLACES[3]):
            high = b.bitcast(up if v < 3 else down, RUN)
            codes.append(b.or_(self.masked(lows[v], 3 << place), self.masked(high, 4 << place)))
        return codes

    def woven(self, address: Any, pitch: int, count: int) -> list[Any]:
        """`count` bytes of each of four columns, `pitch` bytes apart, a row's four bytes side by side: of each 16 of them rows 0 to
        3, then 4 to 7, 8 to 11, 12 to 15. Of 8, the last two mean nothing."""
        kind = Vector(BYTE, max(count, 16))
        if count == 8:
            whole = [self.load(self.at(address, pitch * t), Vector(BYTE, 8)) for t in range(4)]
            columns = [self.pick(v, v, [*range(8)] * 2) for v in whole]
        else:
            columns = [self.load(self.at(address, pitch * t), kind) for t in range(4)]
        pairs = [self.zipped(a, b, 1, half) for half in (0, 1) for a, b in (columns[:2], columns[2:])]
        return [self.zipped(a, b, 2, half) for a, b in (pairs[:2], pairs[2:]) for half in (0, 1)]

    def zipped(self, first: Any, second: Any, size: int, half: int) -> Any:
        """Elements of `size` bytes of two vectors in turns, from the lower or the upper half of each 16 bytes."""
        count = first.type.count
        places = [lane + 8 * half + i for lane in range(0, count, 16) for i in range(0, 8, size)]
        return self.pick(first, second, [v * count + place + k for place in places for v in (0, 1) for k in range(size)])

    def beside(self, *parts: Any) -> Any:
        """Two or four vectors as one."""
        both = [self.pick(a, b, list(range(2 * a.type.count))) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return both[0] if len(both) == 1 else self.beside(*both)

    def outputs(self, v: int) -> list[int]:
        """The outputs of which vector v of sums is made: the first of each four."""
        if self.way is None or self.bits < 4 or (self.anywhere and self.bits != 6):
            return [16 * v + 4 * i for i in range(4)]
        start = v // 2 * 32 + v % 2 * 8
        return [start, start + 16, start + 4, start + 20]

    def masked(self, value: Any, bits: int) -> Any:
        return self.b.and_(value, self.all(RUN, bits - (bits > 127) * 256))

    def turned(self, runs: list[Any], first: int) -> Any:
        """16 rows of four runs of 64 bytes, the four bytes of a row side by side."""
        pairs = [
            self.pick(a, b, [64 * t + first + j for j in range(16) for t in range(2)]) for a, b in (runs[:2], runs[2:])
        ]
        return self.pick(
            pairs[0], pairs[1], [32 * t + 2 * j + u for j in range(16) for t in range(2) for u in range(2)]
        )

    def plain_step(self, column: Any, sums: Lines, vectors: list[int]) -> Lines:
        """The sums after one more column, in float32."""
        self.ask(column, 1)
        codes = self.column(self.at(self.codes, self.b.mul(column, LONG(8 * self.bits))))
        values = [self.b.uitofp(codes[v], FLOATS) for v in vectors]
        following = []
        for r, line in enumerate(sums):
            x = self.spread(self.b.sitofp(self.load(self.row(r, column), BYTE), FLOAT))
            following.append([self.b.fadd(t, self.b.fmul(v, x)) for t, v in zip(line, values, strict=True)])
        return following

    def factors(self, v: int) -> tuple[Any, Any]:
        """Scale and offset (zero - centre * scale) of vector v of outputs."""
        b = self.b
        word = self.beside(*[self.load(self.at(self.scales, 4 * first), Vector(WORD, 4), 4) for first in self.outputs(v)])
        scale = b.bitcast(b.shl(word, self.all(WORDS, 16)), FLOATS)
        zero = b.bitcast(b.and_(word, self.all(WORDS, -65536)), FLOATS)
        return scale, b.fsub(zero, b.fmul(self.all(FLOATS, float(CENTRE[self.bits])), scale))

    def epilogue(self, v: int, sums: list[Any]) -> None:
        """out += sum * step * scale + offset * step * (sum of the int8), for vector v of outputs and each row."""
        b, outputs = self.b, self.outputs(v)
        scale, offset = self.factors(v)
        for r, own in enumerate(sums):
            step = self.spread(self.load(self.at(self.steps, 8 * r), FLOAT, 4))
            total = self.spread(self.load(self.at(self.steps, 8 * r + 4), FLOAT, 4))
            places = [self.at(self.out, 256 * r + 4 * first) for first in outputs]
            before = self.beside(*[self.load(place, Vector(FLOAT, 4), 4) for place in places])
            y = b.fadd(before, b.fmul(b.fmul(own, step), scale))
            y = b.fadd(y, b.fmul(offset, total))
            for i, place in enumerate(places):
                self.store(self.pick(y, y, list(range(4 * i, 4 * i + 4))), place, 4)
