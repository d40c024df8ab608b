"""The work of `prepare`: tensor by tensor, a few parts of one weight in memory at a time, whatever the model's size.

It goes on in `<directory>.partial`, which becomes `<directory>` when all is on the disk. After a kill, the tensors
that are in the journal and whole in the files are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..codecs import FALLBACK, codec
from ..errors import CheckpointError, StoreError
from ..kernels.pack import flat
from ..quantizers import fitting
from ..quantizers.mixed import mixed
from . import index
from .checkpoint import Checkpoint, TensorInfo
from .encoding import Encoding, Piece, in_order, refuse_unusable, stored_by, whole_bytes
from .entries import (
    INDEX,
    PART_BYTES,
    RESIDUAL,
    SHARED,
    SUBSTITUTE,
    Contents,
    LinearEntry,
    Part,
    Progress,
    Source,
    Stored,
)
from .files import buffer, byte_chunks, checksum, read_bytes
from .integrity import file_checksum, linked_files
from .layout import LinearSpec, ModelLayout
from .measuring import Measure, Measuring
from .mixing import errors_of, quantizers_of
from .recipe import Recipe
from .store import Store
from .writing import ELSEWHERE, JOURNAL, Extents, Journal, synced


class Building:
    """One Store being made by one process (the caller holds the lock)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: ModelLayout,
        directory: Path,
        recipe: Recipe,
        progress: Progress,
        measure: Measure | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.layout = layout
        self.recipe = recipe
        self.progress = progress
        sizes = [checkpoint.weight_bytes(spec) for spec in layout.linears]
        self.measuring = None if measure is None else Measuring(measure, sizes)
        self.directory = directory
        self.work = directory.with_name(directory.name + index.PARTIAL)
        self.work.mkdir(exist_ok=True)
        self.journal = Journal(self.work / JOURNAL, self._identity())
        if self.journal.records:
            progress(0.0, 1.0, "checking what is done already")
        self.journal.keep(len(list(takewhile(self._intact, self.journal.records))))
        self.finished = {record["key"]: record["row"] for record in self.journal.records}
        ends = self.journal.records[-1]["ends"] if self.journal.records else {}
        self.files = {name: Extents(self.work / name, ends.get(name, 0)) for name in (SUBSTITUTE, RESIDUAL, SHARED)}
        processors = len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(processors)
        # One more part than there are threads, so that none of them waits for the disk.
        self.ahead = processors + 1

    def run(self, needed: int) -> Store:
        """Do what is not done yet; `needed` is the size of the whole Store in bytes."""
        try:
            self._check_space(needed)
            contents = self._everything()
            for file in self.files.values():
                file.sync()
        finally:
            if self.measuring is not None:
                self.measuring.close()
            self.pool.shutdown(cancel_futures=True)
            for file in self.files.values():
                file.close()
        return self._finish(contents)

    def _everything(self) -> Contents:
        layout = self.layout
        own = [self.checkpoint.info(name) for name in (*layout.looked_up, *layout.shared)]
        extra = self.checkpoint.further(layout)
        total = float(sum(info.nbytes for info in (*own, *extra)) + sum(map(self.checkpoint.weight_bytes, layout.linears)))
        done = 0.0
        stored: dict[str, Stored] = {}
        kept: dict[str, Stored] = {}
        for info in (*own, *extra):
            used = len(stored) < len(own)
            self.progress(done, total, info.name)
            row = self._once(_key_of_whole(info), partial(self._copy, info, used, not used or info.name not in layout.shared))
            (stored if used else kept)[info.name] = index.stored_from_json(row)
            done += info.nbytes
        linears: dict[str, LinearEntry] = {}
        wanted = list(zip(layout.linears, self._wanted(), strict=True))
        pieces = in_order(self.pool, self.ahead, self._pieces(wanted))
        for spec, quantizer in wanted:
            self.progress(done, total, spec.module)
            row = self._once(_key(spec), partial(self._linear, spec, quantizer, pieces))
            linears[spec.module] = index.linear_from_json(row)
            done += self.checkpoint.weight_bytes(spec)
        self.progress(total, total, "")
        parts = (part.stored for entry in linears.values() for part in entry.parts)
        return Contents(
            layout=layout,
            source=self._source([*stored.values(), *kept.values(), *parts]),
            recipe=self.recipe,
            linears=linears,
            shared={name: stored[name] for name in layout.shared},
            embedding=stored[layout.embedding],
            tables={table.tensor: stored[table.tensor] for table in layout.tables},
            extra=kept,
        )

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """The JSON value that `make` returns, from the journal if an earlier run made it."""
        if key not in self.finished:
            row = make()
            self.journal.add({"key": key, "row": row, "ends": {name: file.end for name, file in self.files.items()}})
            self.finished[key] = row
        return self.finished[key]

    def _wanted(self) -> list[str]:
        """The quantiser of each Linear. A mix is chosen once: errors are measured on samples, by all processors."""
        if mixed(self.recipe.quantizer) is None:
            return quantizers_of(self.layout, self.recipe)
        chosen: list[str] = self._once("mix", self._mix)
        return chosen

    def _mix(self) -> list[str]:
        known = [None] * len(self.layout.linears) if self.measuring is None else self.measuring.all()
        errors = self.pool.map(partial(errors_of, self.checkpoint), self.layout.linears, known)
        return quantizers_of(self.layout, self.recipe, list(errors))

    def _copy(self, info: TensorInfo, checked: bool, linkable: bool) -> list[Any]:
        """Copy a tensor as it is, row-major, or point to it where the recipe links and it is `linkable`: its `Stored` as JSON."""

        def pieces() -> Iterator[Tensor]:
            if info.packed is not None:
                rows = self.checkpoint.read(info.name)
                refuse_unusable(info, rows)
                yield flat(rows)
                return
            for data in byte_chunks(info.file, info.offset, info.nbytes, CheckpointError):
                if checked:
                    refuse_unusable(info, data.view(info.dtype))
                yield data

        if linkable and codec(self.recipe.codec).linked:
            place = str(info.file.absolute())
            return index.stored_to_json(Stored(place, info.offset, info.nbytes, info.dtype, info.shape, checksum(pieces())))
        return index.stored_to_json(self.files[SHARED].append(pieces(), info.dtype, info.shape))

    def _pieces(self, wanted: Sequence[tuple[LinearSpec, str]]) -> Iterator[tuple[Encoding, int, int]]:
        """What is to be encoded of all weights that are not done: those of the next weight come while one is written."""
        for spec, quantizer in wanted:
            if _key(spec) not in self.finished:
                encoding = self._encoding(spec, quantizer)
                yield from ((encoding, *part) for part in encoding.parts)

    def _encoding(self, spec: LinearSpec, wanted: str) -> Encoding:
        """How a weight is encoded: by the recipe's codec, or as `raw` where that cannot store it."""
        quantizer = fitting(wanted, *spec.shape)
        chosen = stored_by(self.checkpoint, spec, self.recipe.codec, quantizer)
        inputs = None if self.measuring is None else self.measuring.of(self.layout.linears.index(spec))
        return Encoding(self.checkpoint, spec, quantizer, chosen, inputs)

    def _linear(self, spec: LinearSpec, wanted: str, pieces: Iterator[Piece]) -> dict[str, Any]:
        """Store a weight as substitute and residual, from the next of all `pieces`: its `LinearEntry` as JSON.

        Where the recipe's codec would not make it smaller, it is stored as `raw`."""
        encoding = self._encoding(spec, wanted)
        ends = {file: file.end for file in self.files.values()}
        entry = self._encode(spec, encoding, islice(pieces, len(encoding.parts)))
        nbytes = sum(part.stored.nbytes for part in entry.parts)
        if encoding.codec.needs_substitute and nbytes >= whole_bytes(spec, encoding.info.dtype):
            for file, end in ends.items():
                file.cut(end)
            encoding = replace(encoding, codec=codec(FALLBACK))
            again = in_order(self.pool, self.ahead, ((encoding, *part) for part in encoding.parts))
            entry = self._encode(spec, encoding, again)
        return index.linear_to_json(entry)

    def _encode(self, spec: LinearSpec, encoding: Encoding, pieces: Iterable[Piece]) -> LinearEntry:
        digest = xxhash.xxh3_64()
        substitutes = []
        parts = []
        for piece in pieces:
            digest.update(buffer(piece.rows))
            substitutes.append(piece.substitute)
            if piece.residual is not None:
                linked = encoding.codec.linked
                stored = encoding.in_source(piece) if linked else self.files[RESIDUAL].add(piece.residual)
                parts.append(Part(piece.first_block, piece.blocks, stored))
        substitute = encoding.quantizer.merge(substitutes)
        return LinearEntry(
            **vars(spec),
            dtype=encoding.info.dtype,
            quantizer=encoding.quantizer.name,
            substitute={name: self.files[SUBSTITUTE].add(tensor) for name, tensor in substitute.items()},
            codec=encoding.codec.name,
            parts=tuple(parts),
            checksum=digest.hexdigest(),
        )

    def _finish(self, contents: Contents) -> Store:
        """Everything on the disk, then the name that says so."""
        for name, file in self.checkpoint.copied_files().items():
            (self.work / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, self.work / name)
        index.save(contents, self.work / INDEX)
        for file in self.work.rglob("*"):
            synced(file)
        # Not before all else is on the disk: without it a run begins anew.
        (self.work / JOURNAL).unlink()
        synced(self.work)
        self.work.rename(self.directory)
        synced(self.directory.parent)
        return Store.open(self.directory)

    def _identity(self) -> dict[str, Any]:
        """Identifies this build; the journal of another build is discarded."""
        linears = [
            [spec.module, spec.weight, *spec.shape, *([spec.experts, spec.pieces] if spec.experts else [])]
            for spec in self.layout.linears
        ]
        tables = [[table.module, table.tensor] for table in self.layout.tables]
        named = [linears, self.layout.embedding, list(self.layout.shared), PART_BYTES, *([tables] if tables else [])]
        layout = index.digest(named)
        recipe = index.recipe_to_json(self.recipe)
        return {"version": index.VERSION, "of": self.checkpoint.fingerprint, "layout": layout, **recipe}

    def _source(self, extents: Iterable[Stored]) -> Source:
        return Source(
            name=self.checkpoint.origin,
            fingerprint=self.checkpoint.fingerprint,
            shards=tuple((shard.path.name, shard.header.decode()) for shard in self.checkpoint.shards),
            files={name: file_checksum(file) for name, file in self.checkpoint.copied_files().items()},
            linked=linked_files(extents),
        )

    def _intact(self, record: dict[str, Any]) -> bool:
        """Whether the tensor of a journal record is whole in the files."""
        if record["key"] == "mix":
            return True
        if record["key"].startswith("whole "):
            extents = [index.stored_from_json(record["row"])]
        else:
            extents = index.linear_from_json(record["row"]).extents
        return all(self._reads_back(stored) for stored in extents)

    def _reads_back(self, stored: Stored) -> bool:
        data = torch.empty(stored.nbytes, dtype=torch.uint8)
        try:
            read_bytes(self.work / stored.file, stored.offset, data, StoreError)
        except StoreError:
            return False
        return checksum([data]) == stored.checksum

    def _check_space(self, needed: int) -> None:
        missing = needed - sum(file.end for file in self.files.values())
        free = shutil.disk_usage(self.work).free
        if missing > free:
            raise StoreError(
                f"The Store needs {-(-missing // 10**6):,} MB more in {self.directory.parent}, where {free // 10**6:,} MB are"
                f" free: free some space, or {ELSEWHERE}."
            )


def _key_of_whole(info: TensorInfo) -> str:
    """What the journal calls a tensor that is copied; one that is made of codes may have the name of theirs."""
    return f"whole {info.name}" if info.packed is None else f"whole {info.name}, of its codes"


def _key(spec: LinearSpec) -> str:
    """What the journal calls a weight."""
    return f"linear {spec.module}"
