"""The work of `prepare`: tensor by tensor, a few parts of one weight in memory at a time, whatever the model's size.

It goes on in `<directory>.partial`, which becomes `<directory>` when all is on the disk. After a kill, the tensors
that are in the journal and whole in the files are kept."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat, takewhile
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..codecs import Codec, codec
from ..errors import CheckpointError, StoreError
from ..kernels.pack import BLOCK, block, blocks_of, has_nan
from ..quantizers import Quantizer, Tensors, fitting
from ..quantizers.mixed import mixed
from . import index
from .checkpoint import Checkpoint, TensorInfo
from .files import buffer, checksum, read_bytes
from .layout import LinearSpec, ModelLayout
from .mixing import Moments, errors_of, quantizers_of
from .store import (
    CHUNK,
    INDEX,
    PART_BYTES,
    RESIDUAL,
    SHARED,
    SUBSTITUTE,
    LinearEntry,
    Part,
    Progress,
    Recipe,
    Source,
    Store,
    Stored,
    part_blocks,
)
from .writing import ELSEWHERE, JOURNAL, Extents, Journal

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Piece:
    """A part of a weight on its way to the disk."""

    first_block: int
    blocks: int
    rows: Tensor
    substitute: Tensors
    residual: Tensor | None  # the codec's bytes (linked: the rows); none for an exact substitute


class Building:
    """One Store being made by one process (the caller holds the lock)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: ModelLayout,
        directory: Path,
        recipe: Recipe,
        progress: Progress,
        measure: Callable[[], Moments] | None = None,
    ) -> None:
        self.measure = measure
        self.checkpoint, self.layout, self.recipe, self.progress = checkpoint, layout, recipe, progress
        self.directory, self.work = directory, directory.with_name(directory.name + index.PARTIAL)
        self.work.mkdir(exist_ok=True)
        self.journal = Journal(self.work / JOURNAL, self._subject())
        if self.journal.records:
            progress(0.0, 1.0, "checking what is done already")
        self.journal.keep(len(list(takewhile(self._intact, self.journal.records))))
        self.finished = {record["key"]: record["row"] for record in self.journal.records}
        ends = self.journal.records[-1]["ends"] if self.journal.records else {}
        self.files = {name: Extents(self.work / name, ends.get(name, 0)) for name in (SUBSTITUTE, RESIDUAL, SHARED)}
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self.ahead = len(os.sched_getaffinity(0)) + 1

    def run(self, needed: int) -> Store:
        """Do what is not done yet; `needed` is the size of the whole."""
        try:
            self._check_space(needed)
            store = self._everything()
            for file in self.files.values():
                file.sync()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for file in self.files.values():
                file.close()
        return self._finish(store)

    def _everything(self) -> Store:
        layout, tensors = self.layout, self.checkpoint.tensors
        used = {spec.weight for spec in layout.linears} | {layout.embedding, *layout.shared}
        extra = [name for name in tensors if name not in used]
        weights = [spec.weight for spec in layout.linears]
        whole = [layout.embedding, *layout.shared, *extra]
        total, done = float(sum(self.checkpoint.info(name).nbytes for name in [*whole, *weights])), 0.0
        stored: dict[str, Stored] = {}
        for name in whole:
            self.progress(done, total, name)
            row = self._once(f"whole {name}", partial(self._copy, name, name not in extra))
            stored[name] = index.stored_from_json(row)
            done += tensors[name].nbytes
        linears: dict[str, LinearEntry] = {}
        for spec, wanted in zip(layout.linears, self._wanted(), strict=True):
            self.progress(done, total, spec.module)
            row = self._once(f"linear {spec.module}", partial(self._linear, spec, wanted))
            linears[spec.module] = index.linear_from_json(row)
            done += tensors[spec.weight].nbytes
        self.progress(total, total, "")
        return Store(
            path=self.work,
            config=self.checkpoint.config,
            layout=layout,
            source=self._source(linears.values()),
            recipe=self.recipe,
            linears=linears,
            shared={name: stored[name] for name in layout.shared},
            embedding=stored[layout.embedding],
            extra={name: stored[name] for name in extra},
        )

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """The row that `make` returns, from the journal if an earlier run made it."""
        if key not in self.finished:
            row = make()
            self.journal.add({"key": key, "row": row, "ends": {name: file.end for name, file in self.files.items()}})
            self.finished[key] = row
        return self.finished[key]

    def _wanted(self) -> list[str]:
        """The quantiser of each linear. A mix is made once: errors are measured on samples, by all processors."""
        if mixed(self.recipe.quantizer) is None:
            return quantizers_of(self.layout, self.recipe)
        found: list[str] = self._once("mix", self._mix)
        return found

    def _mix(self) -> list[str]:
        moments = None if self.measure is None else self.measure()
        errors = self.pool.map(partial(errors_of, self.checkpoint), self.layout.linears, moments or repeat(None))
        return quantizers_of(self.layout, self.recipe, list(errors))

    def _copy(self, name: str, checked: bool) -> list[Any]:
        """A tensor as it is, row-major: its `Stored`."""
        info = self.checkpoint.info(name)

        def pieces() -> Iterator[Tensor]:
            for start in range(0, info.nbytes, CHUNK):
                data = torch.empty(min(CHUNK, info.nbytes - start), dtype=torch.uint8)
                read_bytes(info.file, info.offset + start, data, CheckpointError)
                if checked:
                    _refuse_nan(info, data.view(info.dtype))
                yield data

        return index.stored_to_json(self.files[SHARED].append(pieces(), info.dtype, info.shape))

    def _linear(self, spec: LinearSpec, wanted: str) -> dict[str, Any]:
        """A weight as substitute and residual: its `LinearEntry`."""
        info = self.checkpoint.info(spec.weight)
        if info.dtype not in FLOATS or info.shape != spec.shape:
            raise CheckpointError(
                f"{info.file}: {info.name} is {info.dtype} {list(info.shape)} where {list(spec.shape)} of bfloat16,"
                " float16 or float32 is needed: choose a checkpoint that is not quantised."
            )
        maker, chosen = fitting(wanted, *spec.shape), codec(self.recipe.codec)
        start = self.files[RESIDUAL].end
        if chosen.applies(info.dtype, maker.name):
            entry = self._encode(spec, info, maker, chosen)
            whole = blocks_of(spec.shape[0]) * BLOCK * spec.shape[1] * info.dtype.itemsize
            if sum(part.stored.nbytes for part in entry.parts) < whole or not chosen.needs_substitute:
                return index.linear_to_json(entry)
            self.files[RESIDUAL].cut(start)
        return index.linear_to_json(self._encode(spec, info, maker, codec("raw")))

    def _encode(self, spec: LinearSpec, info: TensorInfo, maker: Quantizer, chosen: Codec) -> LinearEntry:
        digest, substitutes, parts = xxhash.xxh3_64(), [], []

        def piece(first: int, blocks: int) -> Piece:
            return _piece(self.checkpoint, info, first, blocks, maker, chosen)

        for done in self._in_order(piece, part_blocks(spec.shape, info.dtype)):
            digest.update(buffer(done.rows))
            substitutes.append(done.substitute)
            if done.residual is not None:
                stored = _linked(info, done) if chosen.linked else self.files[RESIDUAL].add(done.residual)
                parts.append(Part(done.first_block, done.blocks, stored))
        substitute = maker.merge(substitutes)
        return LinearEntry(
            module=spec.module,
            weight=spec.weight,
            shape=spec.shape,
            dtype=info.dtype,
            quantizer=maker.name,
            substitute={name: self.files[SUBSTITUTE].add(tensor) for name, tensor in substitute.items()},
            codec=chosen.name,
            parts=tuple(parts),
            checksum=digest.hexdigest(),
        )

    def _in_order(self, make: Callable[[int, int], Piece], items: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        """make(*item) of each item, in order, a few of them ahead in other threads."""
        pending: deque[Future[Piece]] = deque()
        for item in items:
            pending.append(self.pool.submit(make, *item))
            if len(pending) >= self.ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _finish(self, store: Store) -> Store:
        """Everything on the disk, then the name that says so."""
        for file in self.checkpoint.copied_files():
            shutil.copyfile(file, self.work / file.name)
        index.save(store, self.work / INDEX)
        (self.work / JOURNAL).unlink()
        for file in self.work.iterdir():
            _sync(file)
        _sync(self.work)
        self.work.rename(self.directory)
        _sync(self.directory.parent)
        return Store.open(self.directory)

    def _subject(self) -> dict[str, Any]:
        """What a journal must be of to be gone on with."""
        linears = [[spec.module, spec.weight, *spec.shape] for spec in self.layout.linears]
        plan = index.digest([linears, self.layout.embedding, list(self.layout.shared), PART_BYTES])
        return {"version": index.VERSION, "of": self.checkpoint.fingerprint, "layout": plan, **asdict(self.recipe)}

    def _source(self, linears: Iterable[LinearEntry]) -> Source:
        shards = tuple((shard.path.name, shard.header.decode()) for shard in self.checkpoint.shards)
        files = {file.name: index.file_checksum(file) for file in self.checkpoint.copied_files()}
        return Source(self.checkpoint.name, self.checkpoint.fingerprint, shards, files, index.linked(linears))

    def _intact(self, record: dict[str, Any]) -> bool:
        """Whether what a journal record tells of is whole in the files."""
        if record["key"] == "mix":
            return True
        if record["key"].startswith("whole "):
            extents = [index.stored_from_json(record["row"])]
        else:
            extents = index.extents_of(index.linear_from_json(record["row"]))
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
                f"The Store needs {missing / 1e9:.1f} GB more in {self.directory.parent}, where {free / 1e9:.1f} GB are"
                f" free: free some space, or {ELSEWHERE}."
            )


def _piece(checkpoint: Checkpoint, info: TensorInfo, first: int, blocks: int, maker: Quantizer, chosen: Codec) -> Piece:
    rows = checkpoint.read_rows(info.name, first * BLOCK, min((first + blocks) * BLOCK, info.shape[0]))
    _refuse_nan(info, rows)
    substitute = maker.quantize(rows)
    if maker.name == "exact":
        return Piece(first, blocks, rows, substitute, None)
    residual = rows if chosen.linked else chosen.encode(block(rows), substitute)
    return Piece(first, blocks, rows, substitute, residual)


def _linked(info: TensorInfo, done: Piece) -> Stored:
    """Where the rows of a piece lie in the source."""
    offset, nbytes = info.offset + done.first_block * BLOCK * info.shape[1] * info.dtype.itemsize, done.rows.nbytes
    return Stored(str(info.file.absolute()), offset, nbytes, torch.uint8, (nbytes,), checksum([done.rows]))


def _refuse_nan(info: TensorInfo, piece: Tensor) -> None:
    if has_nan(piece):
        raise CheckpointError(f"{info.file}: tensor {info.name!r} holds NaN: the checkpoint is broken, get it again.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
