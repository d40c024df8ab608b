"""Hidden states of texts on disk: the target reads every piece once, and a killed run goes on with the pieces that are missing.

A dump is a directory of two files. `hidden.bin` holds the hidden states [tokens, taps, hidden size] of pieces, in the order in
which they were read. `journal.jsonl` says where each lies, under a digest of its tokens, with a checksum. So trainings on other
choices of the same texts find what earlier ones read."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import NumbersError, StoreError
from ..models.model import Model
from ..plan.sizes import format_size
from ..tree import Nodes, TokenTree
from ..weights.files import buffer, checksum, read_tensor
from ..weights.store import Store
from ..weights.writing import JOURNAL, Journal, explained
from . import Report
from .data import Pieces

HIDDEN = "hidden.bin"
ELSEWHERE = "choose another directory with --dump"
NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass
class PieceRow:
    """A piece that is being read in a row of the cache."""

    piece: int
    tokens: list[int]
    # Its hidden states [tokens, taps, hidden size], as far as it is read.
    states: Tensor
    done: int = 0


@dataclass
class PieceReader:
    """Reads pieces with the target `model`, several at a time: each sweep of the weights serves as many tokens as the plan has room
    for. No bit depends on which pieces are read together."""

    model: Model

    def states(self, pieces: Iterable[tuple[int, list[int]]]) -> Iterator[list[tuple[int, Tensor]]]:
        """Of each pass, the pieces (number, tokens) that it finished: number, and hidden states [tokens, taps, hidden size].

        Raises NumbersError where the model computes NaN or infinity, TransferError where weights do not arrive."""
        waiting = deque(pieces)
        rows: dict[int, PieceRow] = {}
        while waiting or rows:
            for place in range(self.model.cache.rows):
                if place not in rows and waiting:
                    rows[place] = self._begun(place, *waiting.popleft())
            self._read(rows)
            finished = [place for place, row in rows.items() if row.done == len(row.tokens)]
            yield [(row.piece, row.states) for row in map(rows.pop, finished)]

    def _begun(self, place: int, piece: int, tokens: list[int]) -> PieceRow:
        self.model.cache.rewind(place, 0)
        size = (len(tokens), len(self.model.taps), self.model.hidden_size)
        return PieceRow(piece, tokens, torch.empty(size, dtype=self.model.dtype))

    @torch.inference_mode()
    def _read(self, rows: dict[int, PieceRow]) -> None:
        """One pass: the oldest pieces first, as much of each as there is room for."""
        room = self.model.plan.pass_nodes
        counts: dict[int, int] = {}
        for place, row in rows.items():
            counts[place] = min(len(row.tokens) - row.done, room)
            room -= counts[place]
        counts = {place: count for place, count in counts.items() if count}
        nodes = [_chain(rows[place], place, count) for place, count in counts.items()]
        with self.model.guard():
            _, hidden = self.model.verify(Nodes.join(nodes), NOTHING)
        assert hidden is not None, "the model was loaded without taps"
        if not bool(hidden.isfinite().all()):
            raise NumbersError("The model computed NaN or infinity for a text of the data: it cannot be learned from.")
        for (place, count), states in zip(counts.items(), torch.split(hidden.cpu(), list(counts.values())), strict=True):
            _take(rows[place], states)
            self.model.cache.keep(place, torch.arange(count))


def _chain(row: PieceRow, place: int, count: int) -> Nodes:
    return Nodes.of(TokenTree.chain(row.tokens[row.done : row.done + count]), place, row.done)


def _take(row: PieceRow, states: Tensor) -> None:
    row.states[row.done : row.done + len(states)] = states
    row.done += len(states)


@dataclass(frozen=True)
class DumpSize:
    """What the hidden states of one token are."""

    # As numbers of `DrafterSpec.taps`.
    taps: tuple[int, ...]
    hidden_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, store: Store, taps: Iterable[int], options: Mapping[str, Any]) -> DumpSize:
        """Those of the model in `store` where it is loaded with `options`, at `taps` and where the output head reads."""
        asked = str(options.get("dtype", "auto")).removeprefix("torch.")
        dtype = getattr(torch, asked, None) or store.dtype
        return cls(tuple(sorted({*taps, -1})), store.embedding.shape[1], dtype)

    @property
    def token_bytes(self) -> int:
        return len(self.taps) * self.hidden_size * self.dtype.itemsize


def reader_of(store: Store, options: Mapping[str, Any]) -> dict[str, Any]:
    """What hidden states depend on besides their text: the model in `store`, and how exactly it computes, if `options` say that."""
    asked = {f"--{name.replace('_', '-')}": str(options.get(name, "auto")) for name in ("kv_bits", "dtype")}
    return {"model": store.source.fingerprint, **{name: value for name, value in asked.items() if value != "auto"}}


@dataclass(frozen=True)
class Place:
    """Where the hidden states of a piece lie."""

    # Of hidden.bin, in bytes.
    offset: int
    tokens: int
    checksum: str


class Dump:
    """Hidden states in `directory`, those of a model of which `subject` says which it is. Others that are there are forgotten.

    Raises StoreError for a directory that cannot be written."""

    def __init__(self, directory: Path, size: DumpSize, subject: dict[str, Any]):
        self.directory = directory
        self.size = size
        self.places: dict[str, Place] = {}
        with explained(directory, ELSEWHERE):
            directory.mkdir(parents=True, exist_ok=True)
            taps = {"taps": list(size.taps), "hidden_size": size.hidden_size, "dtype": str(size.dtype)}
            self.journal = Journal(directory / JOURNAL, {**subject, **taps})
            self.journal.keep(len(self.journal.records))
            for record in self.journal.records:
                self.places |= {key: Place(*place) for key, place in record.items()}
            self.file = os.open(directory / HIDDEN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.end = max((place.offset + self._nbytes(place) for place in self.places.values()), default=0)
            # What lies past the end is left from a kill.
            os.ftruncate(self.file, self.end)

    def missing(self, pieces: Pieces) -> list[int]:
        """The pieces that are not there."""
        return [piece for piece, key in enumerate(pieces.keys) if key not in self.places]

    def missing_bytes(self, pieces: Pieces) -> int:
        """Bytes that their hidden states will take."""
        return sum(map(pieces.length, self.missing(pieces))) * self.size.token_bytes

    def check(self, pieces: Pieces, report: Report) -> None:
        """Compare the hidden states of `pieces` with their checksums, and forget those that are not as they were written."""
        there = {key: self.places[key] for key in pieces.keys if key in self.places}
        total = sum(map(self._nbytes, there.values()))
        done = 0
        damaged = False
        for key, place in there.items():
            report("checking hidden states", done, total)
            done += self._nbytes(place)
            if not self._reads_back(place):
                damaged = True
                del self.places[key]
        if damaged:
            self.journal.keep(0)
            self._note(self.places)

    def _reads_back(self, place: Place) -> bool:
        try:
            return checksum([self._read(place)]) == place.checksum
        except StoreError:
            return False

    def check_space(self, pieces: Pieces) -> None:
        """Raise StoreError where the disk has no room for what is missing."""
        needed = self.missing_bytes(pieces)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            have = f"where {format_size(free)} are free"
            raise StoreError(
                f"The hidden states need {format_size(needed)} more in {self.directory}, {have}: free some space, or {ELSEWHERE}."
            )

    def fill(self, pieces: Pieces, model: Model, report: Report) -> None:
        """Read what is missing with the target `model`. What is there by then stays, whatever ends it.

        Raises StoreError where the disk is full, and what `PieceReader.states` raises."""
        missing = self.missing(pieces)
        if not missing:
            return
        total = sum(map(pieces.length, missing))
        done = 0
        report("reading the texts", done, total)
        texts = ((piece, pieces.tokens[pieces.part(piece)].tolist()) for piece in missing)
        for finished in PieceReader(model).states(texts):
            with explained(self.directory, ELSEWHERE):
                self._write({pieces.keys[piece]: states for piece, states in finished})
            done += sum(len(states) for _, states in finished)
            report("reading the texts", done, total)

    def _write(self, finished: dict[str, Tensor]) -> None:
        places = {}
        for key, states in finished.items():
            assert states.dtype == self.size.dtype, f"{states.dtype} where {self.size.dtype} is read"
            view = buffer(states)
            offset = self.end
            while view:
                count = os.pwrite(self.file, view, offset)
                view, offset = view[count:], offset + count
            places[key] = Place(self.end, len(states), checksum([states]))
            self.end = offset
        if places:
            self._note(places)

    def _note(self, places: dict[str, Place]) -> None:
        """Write in the journal that these are there."""
        self.journal.add({key: list(astuple(place)) for key, place in places.items()})
        self.places |= places

    def read(self, key: str) -> Tensor:
        """Hidden states [tokens, taps, hidden size] of a piece that is there. Raises StoreError where the file is cut short."""
        return self._read(self.places[key])

    def _read(self, place: Place) -> Tensor:
        shape = (place.tokens, len(self.size.taps), self.size.hidden_size)
        return read_tensor(self.directory / HIDDEN, place.offset, self.size.dtype, shape, StoreError)

    def _nbytes(self, place: Place) -> int:
        return place.tokens * self.size.token_bytes

    def close(self) -> None:
        os.close(self.file)
