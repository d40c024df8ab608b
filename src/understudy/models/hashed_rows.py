"""Tables that are looked up by a hash: they are too large for memory, and which rows are wanted is known within a pass alone.

The rows of all nodes are read side by side by several threads, since each is a few hundred bytes anywhere in a file."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TransferError
from ..weights.entries import Stored

# Bytes that a row which is kept takes beside its numbers: a buffer, a tensor and its place, by the kernel's count.
ROW = 2 << 10
# Reads that are under way at once: a disk answers many small ones in the time of one.
READERS = 16


class HashedTable(nn.Module):
    """Stands for a stock embedding module: `rows` gives the rows of places in its table, and its weight is there for its shape."""

    # [m] places -> [m, width]
    rows: Callable[[Tensor], Tensor]

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=dtype, device="meta"), requires_grad=False)

    @classmethod
    def of(cls, stock: Any) -> HashedTable:
        """What stands for the embedding module `stock`."""
        rows, width = stock.weight.shape
        return cls(rows, width, stock.weight.dtype)

    def forward(self, places: Tensor) -> Tensor:
        """places [n, tokens, m] -> [n, 1, m, width]: those of the last token of each node alone."""
        last = places[:, -1:]
        return self.rows(last.flatten()).to(self.weight.dtype).view(*last.shape, -1)


class TableRows:
    """The rows of a table that lies in memory, [rows, width]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, places: Tensor) -> Tensor:
        return self.table[places]

    def close(self) -> None: ...


class FileRows:
    """Rows [m, width] of a table that lies in files, in pieces one after another. The latest `room` bytes of rows are kept."""

    def __init__(self, pieces: Sequence[tuple[Path, Stored]], room: int) -> None:
        self.pieces = list(pieces)
        # of the table, the first row of each piece, and one past the last
        self.firsts = [0, *accumulate(stored.shape[0] for _, stored in self.pieces)]
        stored = self.pieces[0][1]
        self.dtype, self.width = stored.dtype, stored.shape[1]
        self.stride = self.width * self.dtype.itemsize
        self.keep = max(room // (self.stride + ROW), 64)
        self.kept: OrderedDict[int, Tensor] = OrderedDict()
        self.files = {path: os.open(path, os.O_RDONLY) for path, _ in self.pieces}
        for file in self.files.values():
            # what lies beside a row is of other texts
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        self.readers = ThreadPoolExecutor(READERS, "rows of a table")

    def __call__(self, places: Tensor) -> Tensor:
        """Raises TransferError when a file ends too early."""
        wanted = places.tolist()
        missing = sorted({place for place in wanted if place not in self.kept})
        found = dict(zip(missing, self._read(missing), strict=True))
        rows = torch.stack([found[place] if place in found else self.kept[place] for place in wanted])
        for place in dict.fromkeys(wanted):
            if place in found:
                self.kept[place] = found[place]
            self.kept.move_to_end(place)
        while len(self.kept) > self.keep:
            self.kept.popitem(last=False)
        return rows

    def _read(self, places: list[int]) -> list[Tensor]:
        """The rows at `places`, each reader taking neighbours."""
        each = -(-len(places) // READERS) or 1
        shares = [places[i : i + each] for i in range(0, len(places), each)]
        if len(shares) < 2:
            return [self._row(place) for place in places]
        return [row for share in self.readers.map(lambda share: [self._row(place) for place in share], shares) for row in share]

    def _row(self, place: int) -> Tensor:
        assert 0 <= place < self.firsts[-1], f"row {place} is not in a table of {self.firsts[-1]}"
        number = bisect_right(self.firsts, place) - 1
        path, stored = self.pieces[number]
        data = os.pread(self.files[path], self.stride, stored.offset + (place - self.firsts[number]) * self.stride)
        if len(data) != self.stride:
            lack = self.stride - len(data)
            raise TransferError(f"{path} is cut short: row {place} of a table lacks {lack} bytes; prepare again.")
        return torch.frombuffer(bytearray(data), dtype=self.dtype)

    def close(self) -> None:
        self.readers.shutdown()
        for file in self.files.values():
            os.close(file)
        self.files = {}
