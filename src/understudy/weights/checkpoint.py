"""A Hugging Face model directory, read in place: configuration, and tensors of safetensors files by byte range."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.pack import flat
from .entries import INDEX
from .files import buffer, read_bytes, read_tensor
from .formats import gguf_advice, other_format, refuse_adapter
from .hub import SAFETENSORS_INDEX as SAFETENSORS_INDEX
from .hub import SINGLE, download
from .layout import LinearSpec, ModelLayout, same_rows
from .packed import read_factors, read_rows
from .published import unpacked
from .shards import Shard, one_type, read_shard
from .shards import TensorInfo as TensorInfo

# The name of one shard of several: what stands before its number, the number, and how many there are.
NUMBERED = re.compile(r"(.*-)(\d+)(-of-(\d+)\.safetensors)")
# Bytes of a transposed weight that are read together, of which a part of a weight takes some.
BAND = 8 << 20
# What belongs to a model beside its weights.
# A model may have chat templates besides its own, in a folder that transformers looks in.
COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """`name` is what the user called it. `tensors` are those that a model has of all shards: of quantised ones, the weights."""

    name: str
    path: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, model: str | Path, *, offline: bool = False, revision: str | None = None) -> "Checkpoint":
        """A local directory, or a model of the Hugging Face hub (downloaded into its cache, whole) at a `revision`."""
        path = Path(model).expanduser()
        if path.is_file():
            raise CheckpointError(f"{path} is a file: {other_format(path) or f'give the directory it lies in, {path.parent}'}.")
        if not path.is_dir():
            path = download(str(model), offline, revision)
            if "gguf" in str(model).lower() and not (path / "config.json").is_file():
                raise CheckpointError(f"{gguf_advice(str(model))}.")
        refuse_adapter(path)
        config = read_object(path / "config.json")
        shards = tuple(read_shard(file) for file in shard_files(path))
        return cls(str(model), path, config, shards, unpacked(config, _by_name(path, shards)))

    @cached_property
    def stored(self) -> dict[str, TensorInfo]:
        """The tensors of all shards, as they are published. Of several of one name the last counts."""
        return {info.name: info for shard in self.shards for info in shard.tensors}

    @property
    def origin(self) -> str:
        """What finds the checkpoint again: the hub's name for it, or its directory, from the root."""
        given = Path(self.name).expanduser()
        return str(given.absolute()) if given.is_dir() else self.name

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}, which its config.json calls for. Get it again.")
        return self.tensors[name]

    def read(self, name: str) -> Tensor:
        info = self.info(name)
        if info.packed is not None:
            return read_rows(info, 0, info.shape[0])
        return read_tensor(info.file, info.offset, info.dtype, info.shape, CheckpointError)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop - 1 of a tensor of one dimension or more, without reading the others."""
        info = self.info(name)
        assert 0 <= start <= stop <= info.shape[0], f"rows {start} to {stop} of {info.shape} of {name}"
        if info.packed is not None:
            return read_rows(info, start, stop - start)
        shape = (stop - start, *info.shape[1:])
        return read_tensor(info.file, info.offset + start * info.row_bytes, info.dtype, shape, CheckpointError)

    def weight_rows(self, spec: LinearSpec, start: int, stop: int) -> Tensor:
        """Rows start..stop - 1 of a weight [out, in], in whatever order they are stored."""
        if not spec.turned:
            rows = torch.empty(stop - start, spec.shape[1], dtype=self.info(spec.weight).dtype)
            done = 0
            for info, first, count in self._shares(spec, start, stop):
                if info.packed is None:
                    place = info.offset + first * spec.shape[1] * info.dtype.itemsize
                    read_bytes(info.file, place, flat(rows[done : done + count]), CheckpointError)
                else:
                    rows[done : done + count] = read_rows(info, first, count)
                done += count
            return rows
        # of the one expert that they are of
        columns, before = spec.shape[1], start // spec.outputs * spec.shape[1]
        width = max(BAND // (spec.outputs * self.info(spec.weight).dtype.itemsize), 1)
        bands = (self._lines(spec, before + at, min(width, columns - at)) for at in range(0, columns, width))
        own = slice(start % spec.outputs, start % spec.outputs + stop - start)
        # copied one by one, so that no whole band is held
        return torch.cat([band[:, own].T.contiguous() for band in bands], dim=1)

    def weight_factors(self, spec: LinearSpec, start: int, stop: int) -> tuple[Tensor, int]:
        """What the codes of rows start..stop - 1 of a weight are multiplied by, which lie in one tensor (`read_factors`)."""
        ((info, first, count),) = self._shares(spec, start, stop)
        return read_factors(info, first, count)

    def _lines(self, spec: LinearSpec, first: int, count: int) -> Tensor:
        """Lines of a weight that is stored transposed: one for each input, of all outputs; one expert's follow the other's."""
        info = self.info(spec.weight)
        assert same_rows(info.shape, spec.stored_shape), f"{info.name} is {info.shape}, not {spec.stored_shape}"
        offset = info.offset + first * spec.outputs * info.dtype.itemsize
        return read_tensor(info.file, offset, info.dtype, (count, spec.outputs), CheckpointError)

    def places(self, spec: LinearSpec, start: int, stop: int) -> list[tuple[TensorInfo, int, int]]:
        """Where rows start..stop - 1 of a weight lie, which is not stored transposed: of each tensor that has some, one after
        another, the offset of the first in its file, and how many."""
        width = spec.shape[1]
        shares = self._shares(spec, start, stop)
        assert not any(info.packed for info, _, _ in shares), f"{spec.module} lies in no file as it is"
        return [(info, info.offset + first * width * info.dtype.itemsize, count) for info, first, count in shares]

    def _shares(self, spec: LinearSpec, start: int, stop: int) -> list[tuple[TensorInfo, int, int]]:
        """Of each tensor that has some of rows start..stop - 1 of a weight: its first row, and how many."""
        assert 0 <= start <= stop <= spec.shape[0] and not spec.turned, f"rows {start} to {stop} of {spec.shape} of {spec.module}"
        runs = spec.runs
        each = spec.shape[0] // len(runs)
        found = []
        for number in range(start // each, -(-stop // each)):
            name, before = runs[number]
            info = self.info(name)
            assert same_rows(info.shape, spec.stored_shape), f"{info.name} is {info.shape}, not {spec.stored_shape}"
            first, last = max(start - number * each, 0), min(stop - number * each, each)
            found.append((info, before + first, last - first))
        return found

    def weight_dtype(self, spec: LinearSpec) -> torch.dtype:
        """The type of a weight's numbers. Raises CheckpointError where its tensors are of several, or one is missing."""
        return one_type([self.info(name) for name in spec.tensors])

    def weight_bytes(self, spec: LinearSpec) -> int:
        """Bytes of all tensors of a weight. Raises CheckpointError where one is missing."""
        return sum(self.info(name).nbytes for name in spec.tensors)

    def further(self, layout: ModelLayout) -> list[TensorInfo]:
        """What a Store of this layout holds of the files as it is published, beside the tensors that the model has: those that it
        does not use, scales, and codes that nothing else in the Store tells."""
        weights = [self.info(name) for spec in layout.linears for name in spec.tensors]
        others = [self.info(name) for name in (*layout.looked_up, *layout.shared)]
        told = {info.published[0].name for info in weights}
        told |= {info.name for info in others if info.packed is None}
        return [info for name, info in self.stored.items() if name not in told]

    def copied_files(self) -> dict[str, Path]:
        """Configuration, tokenizer and chat template files, everything small that is not weights, by their names from the
        checkpoint's folder on."""
        found = {file for pattern in COPIED for file in self.path.glob(pattern) if file.is_file()}
        return {file.relative_to(self.path).as_posix(): file for file in sorted(found) if file.name != INDEX}

    @cached_property
    def fingerprint(self) -> str:
        """Of what the model computes: every small file, the headers, and samples of each tensor's bytes."""
        digest = xxhash.xxh3_128()
        for name, file in self.copied_files().items():
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
        for shard in self.shards:
            digest.update(shard.header)
            for info in shard.tensors:
                for offset in _samples(info):
                    piece = torch.empty(min(4096, info.nbytes - offset), dtype=torch.uint8)
                    read_bytes(info.file, info.offset + offset, piece, CheckpointError)
                    digest.update(buffer(piece))
        return digest.hexdigest()


def _samples(info: TensorInfo) -> list[int]:
    """Offsets of three pages spread over the tensor."""
    last = max(info.nbytes - 4096, 0)
    return sorted({0, last // 2, last}) if info.nbytes else []


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises CheckpointError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise CheckpointError(
            f"{path} cannot be read ({problem.strerror}): is {path.parent} a Hugging Face model directory?"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} is not valid JSON ({problem}). Get it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object. Get it again.")
    return content


def _listed(path: Path) -> dict[str, str] | None:
    """The name of the file of each tensor, by the index of the directory `path`; None where no index counts.

    Where a model.safetensors lies beside an index that does not list it, it is the model, as for transformers: the index was left
    by an earlier one. Raises CheckpointError for an index that cannot be used."""
    place = path / SAFETENSORS_INDEX
    single = (path / SINGLE).is_file()
    if not place.is_file():
        return None
    listed = read_object(place).get("weight_map")
    files = listed.values() if isinstance(listed, dict) else ()
    if single and SINGLE not in files:
        return None
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{place} lists no weights. Get it again.")
    for name, file in listed.items():
        if not isinstance(file, str) or not file:
            raise CheckpointError(f"{place} names no file for {name!r}, but {file!r}. Get it again.")
        if Path(file).name != file:
            raise CheckpointError(f"{place} puts {name!r} in {file}, which is no file beside it: put all shards in {path}.")
    return listed


def shard_files(path: Path) -> list[Path]:
    """The files of the weights in the directory `path`: those that an index lists, else the one that has all, or all there are.

    Raises CheckpointError where one of them is missing, and for an index that cannot be used."""
    if (listed := _listed(path)) is not None:
        files, why = [path / name for name in sorted(set(listed.values()))], f"{SAFETENSORS_INDEX} lists it"
    elif (path / SINGLE).is_file():
        files, why = [path / SINGLE], ""
    else:
        found = [*path.glob("model*.safetensors")]
        files, why = sorted({*found, *_numbered(found)}), "the names of others count it"
    for file in files:
        if not file.exists() and file.is_symlink():
            raise CheckpointError(f"{file} is a link to {file.readlink()}, which is not there. Get the model again.")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, though {why}. Get the model again.")
    if not files:
        hint = other_format(path) or "save the model with save_pretrained (`understudy plan --config` needs no weights)"
        raise CheckpointError(f"{path} has no model.safetensors: {hint}.")
    return files


def _numbered(files: Sequence[Path]) -> set[Path]:
    """All shards of which the names of some tell how many there are."""
    parts = [(file, NUMBERED.fullmatch(file.name)) for file in files]
    return {
        file.with_name(f"{named[1]}{number:0{len(named[2])}}{named[3]}")
        for file, named in parts
        if named is not None
        # a number that no download counts to is no count
        for number in range(1, min(int(named[4]), 10_000) + 1)
    }


def _by_name(path: Path, shards: Sequence[Shard]) -> dict[str, TensorInfo]:
    """The tensors of all `shards` of the directory `path`. Of two of one name the last counts, as for transformers, if the index
    says so too.

    Raises CheckpointError for a tensor that is not where the index puts it, and for two of one name."""
    listed = _listed(path)
    found: dict[str, TensorInfo] = {}
    for info in (info for shard in shards for info in shard.tensors):
        other = found.get(info.name)
        if other is not None and (listed is None or listed.get(info.name) != info.file.name):
            raise CheckpointError(f"{info.name!r} is in {other.file} and in {info.file.name}: which counts? Get the model again.")
        found[info.name] = info
    for name, file in (listed or {}).items():
        if name not in found or found[name].file.name != file:
            raise CheckpointError(f"{path / file} lacks the tensor {name!r} that the index puts there. Get it again.")
    return found
