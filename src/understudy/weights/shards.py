"""A safetensors file: where its tensors lie, and its header as it is written. One that is damaged is refused by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from .files import read_bytes
from .formats import refuse_pointer

if TYPE_CHECKING:
    from .packed import Packed

DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes are: `nbytes` at `offset` of `file`.

    One that is `packed` is what a model has of tensors that are published quantised: no file holds it, and its place is theirs."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    # What the file calls a type that is not in DTYPES, of which only the bytes are known: `dtype` is uint8, `shape` [nbytes].
    unknown: str = ""
    packed: "Packed | None" = None

    @property
    def row_bytes(self) -> int:
        """Bytes of each of the tensor's rows."""
        return self.nbytes // self.shape[0] if self.shape[0] else 0

    @property
    def published(self) -> "tuple[TensorInfo, ...]":
        """The tensors of the files that it is made of: its codes, their scales and what else they need, or itself."""
        return (self,) if self.packed is None else self.packed.tensors

    @property
    def form(self) -> str:
        """The form of its codes, as `Packed` calls it; empty: it is published as it is, or in a way for which there is no codec."""
        return "" if self.packed is None else self.packed.streams_as

    @property
    def kind(self) -> str:
        """The type's name, for people."""
        return self.unknown or str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as written, so that the file can be made again byte for byte."""

    path: Path
    header: bytes
    tensors: tuple[TensorInfo, ...]  # in the order of their bytes


def one_type(infos: Sequence[TensorInfo]) -> torch.dtype:
    """The type of all of some tensors. Raises CheckpointError, naming the first that is of another one."""
    for info in infos:
        if info.kind != infos[0].kind:
            raise CheckpointError(
                f"{info.file}: {info.name} is {info.kind}, and {infos[0].name} {infos[0].kind}: a layer's experts must be of one"
                " type. Load the model in one and save it."
            )
    return infos[0].dtype


def read_shard(path: Path) -> Shard:
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}. Get the model again.") from None
    refuse_pointer(path)
    length = torch.zeros(8, dtype=torch.uint8)
    read_bytes(path, 0, length, CheckpointError)
    count = int.from_bytes(length.numpy().tobytes(), "little")
    if not 2 <= count <= size - 8:
        raise CheckpointError(f"{path} is not a whole safetensors file (header {count} of {size} bytes). Get it again.")
    header = torch.empty(count, dtype=torch.uint8)
    read_bytes(path, 8, header, CheckpointError)
    text = header.numpy().tobytes()
    try:
        tensors = tensors_of(text, path, size)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{path} has a damaged header ({problem!r}). Get it again.") from None
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_covered(path, tensors, 8 + count, size)
    return Shard(path, text, tuple(tensors))


def tensors_of(header: bytes, path: Path, size: int | None = None) -> list[TensorInfo]:
    """The tensors that a safetensors file of `size` bytes has by its `header`; None: as many bytes as they need.

    Raises CheckpointError for one that lies beyond its end, and what a header raises that is none."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    start = 8 + len(header)
    return [_tensor_info(name, entry, path, start, size) for name, entry in entries.items()]


def _check_covered(path: Path, tensors: Sequence[TensorInfo], start: int, size: int) -> None:
    """Raise CheckpointError unless the `tensors` lie one after another, from byte `start` of the file `path` to its end, `size`.
    Two in one place, and bytes of none, are how damaged headers show."""
    for info in tensors:
        if info.offset != start:
            raise CheckpointError(f"{path}: tensor {info.name!r} begins at byte {info.offset}, not at {start}. Get it again.")
        start += info.nbytes
    if start != size:
        raise CheckpointError(f"{path} has {size - start} bytes after its last tensor. Get it again.")


def _tensor_info(name: str, entry: Mapping[str, Any], path: Path, start: int, size: int | None) -> TensorInfo:
    """Where a tensor lies. One of an unknown type is told as its bytes: a model that does not need it can do with it."""
    first, last = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    unknown = "" if entry["dtype"] in DTYPES else str(entry["dtype"])
    dtype = DTYPES.get(entry["dtype"], torch.uint8)
    shape = (last - first,) if unknown else shape
    if last - first != prod(shape) * dtype.itemsize or first < 0 or last < first:
        raise CheckpointError(f"{path}: tensor {name!r} has {last - first} bytes, not its shape's. Get it again.")
    if size is not None and start + last > size:
        raise CheckpointError(f"{path} is cut short: {name!r} ends at byte {start + last} of {size}. Get it again.")
    return TensorInfo(name, dtype, shape, path, start + first, last - first, unknown)
