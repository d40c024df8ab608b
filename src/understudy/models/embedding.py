"""What is looked up by token stays in the slow tier: only the rows of the tokens at hand are gathered from its tables.

Models have one table, the embedding, or further ones beside it, with rows for each layer.

Where drafted tokens are chosen on a device, the host cannot gather rows for them, and the whole table lies there."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..devices import Device
from ..errors import TransferError
from ..weights.entries import Stored
from ..weights.layout import ModelLayout
from ..weights.store import Store
from .hashed_rows import ROW, FileRows, HashedTable, TableRows
from .proven_tables import prove_tables

T = TypeVar("T")
# Bytes for rows of a table that are kept on the processor.
EMBEDDING_ROOM = 8 << 20


def lookups(model: Any, layout: ModelLayout) -> list[nn.Module]:
    """The modules of the stock `model` that are looked up by token: its embedding, then those of the `tables` of its layout."""
    tables = (model.get_submodule(table.module) for table in layout.tables)
    return [model.get_input_embeddings(), *(module for module in tables if not isinstance(module, HashedTable))]


def sorted_tables(
    model: Any, layout: ModelLayout, held: Iterable[T]
) -> tuple[list[tuple[nn.Module, T]], dict[HashedTable, list[T]]]:
    """What is `held` of each tensor of `layout.looked_up`, with the module of the stock `model` that is looked up by token; and of
    those that are looked up by a hash, all pieces of each."""
    embedding, *others = held
    by_token, by_hash = [(model.get_input_embeddings(), embedding)], dict[HashedTable, list[T]]()
    for table, own in zip(layout.tables, others, strict=True):
        module = model.get_submodule(table.module)
        if isinstance(module, HashedTable):
            by_hash.setdefault(module, []).append(own)
        else:
            by_token.append((module, own))
    return by_token, by_hash


class Table(Protocol):
    """One table in one stock embedding module."""

    # The stock module, and how many rows its table has.
    module: nn.Module
    rows: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """Make the module ready for tokens [n]; returns what to give it for them."""

    def close(self) -> None: ...


class Lookup:
    """All tables of a model: made ready together for the tokens at hand. All are of one kind, so one answer holds for all. Those
    that are looked up by a hash (`hashed`) are asked within a pass."""

    def __init__(self, tables: Iterable[Table], hashed: Mapping[HashedTable, FileRows | TableRows] | None = None):
        self.tables = list(tables)
        self.hashed = dict(hashed or {})
        for module, rows in self.hashed.items():
            module.rows = rows

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: [n] ids -> what to give the model for them. Raises what reading a row raises.

        Tables beside the embedding may lack the last tokens, for which the model takes the first row (`by_token.py`)."""
        first, *beside = self.tables
        for table in beside:
            table(torch.where(tokens < table.rows, tokens, 0))
        return first(tokens)

    def close(self) -> None:
        for table in (*self.tables, *self.hashed.values()):
            table.close()


def opened_lookup(model: nn.Module, store: Store, device: Device, whole: bool) -> Lookup:
    """What the stock `model` of a `store` looks up by token: `whole` on the device, or the rows at hand. Raises StoreError where a
    table is damaged."""

    def opened(module: nn.Module, table: Stored) -> EmbeddingRows | EmbeddingTable:
        if whole:
            return EmbeddingTable(module, store, table, device)
        return EmbeddingRows(module, store.file(table.file), table, EMBEDDING_ROOM, device.where)

    by_token, by_hash = sorted_tables(model, store.layout, store.looked_up)
    pieces = [table for own in by_hash.values() for table in own]
    prove_tables(store, pieces if whole else [*pieces, *(table for _, table in by_token)])
    places = {module: [(store.file(table.file), table) for table in own] for module, own in by_hash.items()}
    hashed = {module: FileRows(pieces, EMBEDDING_ROOM) for module, pieces in places.items()}
    return Lookup((opened(*each) for each in by_token), hashed)


class GatheredRows(ABC):
    """Puts the rows of given tokens in the stock embedding module as its weight; row i of it is token i of the call."""

    def __init__(self, module: nn.Module, rows: int, device: str = "cpu"):
        self.module = module
        self.rows = rows
        self.device = device
        self.compute = next(iter(module.parameters())).dtype

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: [n] ids -> what to give the module for them. Raises what reading a row raises."""
        rows = torch.stack([self._row(token) for token in tokens.tolist()])
        self.module.weight = nn.Parameter(rows.to(self.device, self.compute), requires_grad=False)
        return torch.arange(len(rows), device=self.device)

    @abstractmethod
    def _row(self, token: int) -> Tensor:
        """[width]: the row of the table for `token`."""


class TensorRows(GatheredRows):
    """Gathers from a table [rows, width] that lies in memory."""

    def __init__(self, module: nn.Module, table: Tensor):
        super().__init__(module, len(table))
        self.table = table

    def _row(self, token: int) -> Tensor:
        return self.table[token]

    def close(self) -> None: ...


class EmbeddingRows(GatheredRows):
    """Gathers from a file: read with pread, no mapping, no whole table. The latest `room` bytes of rows are kept."""

    def __init__(self, module: nn.Module, path: Path, table: Stored, room: int, device: str = "cpu"):
        super().__init__(module, table.shape[0], device)
        self.path = path
        self.offset = table.offset
        self.dtype = table.dtype
        self.width = table.shape[1]
        self.stride = self.width * self.dtype.itemsize
        self.keep = max(room // (self.stride + ROW), 64)
        self.cached: OrderedDict[int, Tensor] = OrderedDict()
        self.file = os.open(path, os.O_RDONLY)

    def _row(self, token: int) -> Tensor:
        """Raises TransferError when the file ends too early."""
        assert 0 <= token < self.rows, f"token {token} is not in a vocabulary of {self.rows}"
        row = self.cached.get(token)
        if row is None:
            data = os.pread(self.file, self.stride, self.offset + token * self.stride)
            if len(data) != self.stride:
                raise TransferError(
                    f"{self.path} is cut short: embedding row {token} lacks {self.stride - len(data)} bytes; prepare again."
                )
            row = torch.frombuffer(bytearray(data), dtype=self.dtype)
            self.cached[token] = row
            if len(self.cached) > self.keep:
                self.cached.popitem(last=False)
        else:
            self.cached.move_to_end(token)
        return row

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class EmbeddingTable:
    """The stock embedding module with its whole weight, on `device`. Raises StoreError where the table is damaged."""

    def __init__(self, module: nn.Module, store: Store, table: Stored, device: Device):
        rows, width = table.shape
        compute = next(iter(module.parameters())).dtype
        self.device = device
        self.module = module
        self.rows = rows
        weight = device.arena(rows * width * compute.itemsize).view(compute)
        done = 0
        for data in store.pieces(table):
            numbers = data.view(table.dtype)
            weight[done : done + len(numbers)].copy_(numbers.to(compute))
            done += len(numbers)
        module.weight = nn.Parameter(weight.view(rows, width), requires_grad=False)

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: [n] ids, anywhere -> the same on the device."""
        return tokens.to(self.device.where)

    def close(self) -> None: ...
