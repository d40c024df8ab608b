"""A Store back into the checkpoint it came from: the same files, byte for byte, of weights that were published as codes too."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StoreError
from .entries import LinearEntry, Progress
from .files import buffer
from .index import PARTIAL
from .packed import as_published, beside, scales_of
from .published import unpacked
from .shards import TensorInfo, tensors_of
from .store import Store
from .writing import explained


def export(store: Store, directory: Path, progress: Progress | None = None) -> None:
    """Write the source's safetensors, configuration and tokenizer files to `directory`, which must be new or empty.

    What cannot be finished leaves nothing behind."""
    directory = Path(directory).expanduser().absolute()
    work = directory.with_name(directory.name + PARTIAL)
    if work.exists() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise StoreError(f"{work if work.exists() else directory} is not empty: choose a new directory.")
    with explained(directory, "choose another directory"):
        work.mkdir(parents=True)
        try:
            _write(store, work, progress or (lambda done, total, name: None))
            work.rename(directory)
        except BaseException:
            shutil.rmtree(work)
            raise


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor lie: `nbytes` at `offset` of `file`."""

    file: Path
    offset: int
    nbytes: int


def _write(store: Store, work: Path, progress: Progress) -> None:
    for name in store.source.files:
        (work / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(store.file(name), work / name)
    places = _begin(store, work)
    total = float(sum(found[-1].nbytes for found in places.values()))
    done = 0.0
    for names, pieces in _tensors(store).items():
        progress(done, total, names[0])
        done += _fill(_in_turn(names, places), pieces())
    progress(total, total, "")


def _in_turn(names: Sequence[str], places: Mapping[str, list[_Place]]) -> list[list[_Place]]:
    """The `places` of the tensors `names`; one that is named several times is written so, in equal pieces from its start on."""
    times, seen, found = Counter(names), Counter[str](), []
    for name in names:
        own, count = places[name], times[name]
        found.append([_Place(p.file, p.offset + p.nbytes // count * seen[name], p.nbytes // count) for p in own])
        seen[name] += 1
    return found


def _begin(store: Store, work: Path) -> dict[str, list[_Place]]:
    """Write the header of each safetensors file: where each tensor's bytes will lie. Of several of one name the last counts."""
    places: dict[str, list[_Place]] = {}
    for file, header in store.source.shards:
        text = header.encode()
        offsets = _offsets(header)
        with (work / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + max((last for _, last in offsets.values()), default=0))
        for name, (first, last) in offsets.items():
            places.setdefault(name, []).append(_Place(work / file, 8 + len(text) + first, last - first))
    return places


def _tensors(store: Store) -> dict[tuple[str, ...], Callable[[], Iterator[Tensor]]]:
    """What gives the bytes of each tensor, or of several, one after another, by their names: each weight is decoded once, wherever
    the pieces lie that it is made of."""
    shards = (tensors_of(header.encode(), Path(file)) for file, header in store.source.shards)
    infos = unpacked(store.config, {info.name: info for shard in shards for info in shard})
    # of what was made of codes, these are further tensors
    as_they_were = {name: stored for name, stored in store.shared.items() if infos[name].packed is None}
    whole = {**as_they_were, **store.tables, **store.extra}
    found: dict[tuple[str, ...], Callable[[], Iterator[Tensor]]] = {
        (name,): partial(store.pieces, stored) for name, stored in whole.items()
    }
    for entry in store.linears.values():
        own = [(infos[name], first) for name, first in entry.spec.runs]
        names = tuple(info.published[0].name for info, _ in own)
        packed = any(info.packed for info, _ in own)
        found[names] = partial(_as_published, store, entry, own) if packed else partial(_as_stored, store, entry)
    # Also when the head is tied to it.
    return found | {(store.layout.embedding,): partial(store.pieces, store.embedding)}


def _fill(tensors: Sequence[list[_Place]], pieces: Iterable[Tensor]) -> int:
    """Write `pieces` to the places of `tensors`, which they are one after another. Returns how many bytes they have."""
    at, done, total = 0, 0, 0
    for piece in pieces:
        view = buffer(piece)
        while view:
            nbytes = tensors[at][-1].nbytes
            if done == nbytes:
                at, done = at + 1, 0
                continue
            count = min(len(view), nbytes - done)
            for place in (place for place in tensors[at] if place.nbytes == nbytes):
                with place.file.open("r+b") as out:
                    out.seek(place.offset + done)
                    out.write(view[:count])
            view, done, total = view[count:], done + count, total + count
    return total


def _as_stored(store: Store, entry: LinearEntry) -> Iterator[Tensor]:
    """The exact weight in the source's order, in pieces; a matrix that is stored transposed is a single piece."""
    if not entry.turned:
        yield from store.rows_of(entry)
        return
    held: list[Tensor] = []
    for rows in store.rows_of(entry):
        held.append(rows)
        if sum(map(len, held)) == entry.spec.outputs:
            yield torch.cat(held).T.contiguous()
            held = []


def _as_published(store: Store, entry: LinearEntry, runs: Sequence[tuple[TensorInfo, int]]) -> Iterator[Tensor]:
    """The bytes of a weight that was published as tensors, of which all or some were codes, part by part. `runs`: as the weight's
    `LinearSpec` has them."""
    done, each = 0, entry.shape[0] // len(runs)
    kept: dict[str, Tensor] = {}
    whole: list[Tensor] = []

    def read(part: TensorInfo) -> Tensor:
        if part.name not in kept:
            kept[part.name] = store.read(store.extra[part.name])
        return kept[part.name]

    for rows in store.rows_of(entry):
        number, first = divmod(done, each)
        done += len(rows)
        info, before = runs[number]
        first, packed = first + before, info.packed
        if packed is None:
            yield rows
            continue
        if packed.scales.name not in kept:
            kept.clear()
        scales = scales_of(packed, read(packed.scales), first, len(rows))
        codes = packed.codes_of(rows, scales, first, beside(packed, read, first, len(rows)))
        if not packed.order:
            yield codes
            continue
        # columns of a matrix lie in one piece only when all are there
        whole.append(codes)
        if sum(map(len, whole)) == info.shape[0]:
            yield as_published(packed, torch.cat(whole))
            whole.clear()


def _offsets(header: str) -> dict[str, tuple[int, int]]:
    """First and last byte of each tensor of a safetensors file, after its header."""
    entries = json.loads(header)
    return {name: tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"}
