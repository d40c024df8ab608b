"""Packed codes (`kernels.pack`) in vector code: one column's 64 codes, as four vectors of 16 rows, from memory and back."""

from typing import Any

from .vector import BYTE, Code, Vector

QUARTER = Vector(BYTE, 16)


class Codes(Code):
    """Code that reads codes of 2, 3, 4, 6 or 8 bits, and packs those of less than 8."""

    def __init__(self, context: Any, builder: Any, bits: int) -> None:
        super().__init__(context, builder)
        self.bits = bits

    def column(self, address: Any) -> list[Any]:
        """The codes of the column at `address`, a byte each: vector v holds rows 16 v to 16 v + 15."""
        b = self.b
        if self.bits == 8:
            return [self.load(self.at(address, 16 * v), QUARTER) for v in range(4)]
        if self.bits in (4, 6):
            runs = [self.load(self.at(address, 16 * v), QUARTER) for v in range(2)]
            fifteen, four = self.all(QUARTER, 15), self.all(QUARTER, 4)
            low = [b.and_(run, fifteen) for run in runs] + [b.lshr(run, four) for run in runs]
            if self.bits == 4:
                return low
            return [b.or_(x, b.shl(y, four)) for x, y in zip(low, self.pairs(self.at(address, 32)), strict=True)]
        low = self.pairs(address)
        return low if self.bits == 2 else [b.or_(x, third) for x, third in zip(low, self.thirds(address), strict=True)]

    def pairs(self, address: Any) -> list[Any]:
        """Two bits of each code of a column, which lie at `address` as codes of 2 bits do."""
        run = self.load(address, QUARTER)
        return [self.b.and_(self.b.lshr(run, self.all(QUARTER, 2 * v)), self.all(QUARTER, 3)) for v in range(4)]

    def thirds(self, address: Any) -> list[Any]:
        """The third bits of a column's codes in their place: 0 or 4."""
        eight = self.load(self.at(address, 16), Vector(BYTE, 8))
        twice = self.pick(eight, eight, [j % 8 for j in range(16)])
        found = []
        for v in range(4):
            bit = self.constant(QUARTER, [1 << 2 * v + j // 8 for j in range(16)])
            there = self.b.icmp_unsigned("!=", self.b.and_(twice, bit), self.all(QUARTER, 0))
            found.append(self.b.select(there, self.all(QUARTER, 4), self.all(QUARTER, 0)))
        return found

    def put(self, column: list[Any], address: Any) -> None:
        """Pack the codes of a column, as `column` gives them, at the address."""
        b = self.b
        if self.bits in (4, 6):
            fifteen, four = self.all(QUARTER, 15), self.all(QUARTER, 4)
            for v in range(2):
                self.store(b.or_(b.and_(column[v], fifteen), b.shl(column[2 + v], four)), self.at(address, 16 * v))
            if self.bits == 6:
                self.put_pairs([b.lshr(quarter, four) for quarter in column], self.at(address, 32))
            return
        self.put_pairs(column, address)
        if self.bits == 3:
            self.put_thirds(column, self.at(address, 16))

    def put_pairs(self, column: list[Any], address: Any) -> None:
        """The two lowest bits of each code."""
        found = self.all(QUARTER, 0)
        for v, quarter in enumerate(column):
            pairs = self.b.and_(quarter, self.all(QUARTER, 3))
            found = self.b.or_(found, self.b.shl(pairs, self.all(QUARTER, 2 * v)))
        self.store(found, address)

    def put_thirds(self, column: list[Any], address: Any) -> None:
        """The third bit of each code."""
        eight = Vector(BYTE, 8)
        found = self.all(eight, 0)
        for p in range(8):
            rows = self.pick(column[p // 2], column[p // 2], [8 * (p % 2) + i for i in range(8)])
            third = self.b.and_(self.b.lshr(rows, self.all(eight, 2)), self.all(eight, 1))
            found = self.b.or_(found, self.b.shl(third, self.all(eight, p)))
        self.store(found, address)
