"""Tensors of a head's directory: safetensors, or what torch saved. Their names, types and shapes are read without their values."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, quoted
from ..kernels.pack import flat
from ..weights.checkpoint import SAFETENSORS_INDEX, TensorInfo, shard_files
from ..weights.files import byte_chunks, read_tensor
from ..weights.packed import TOGETHER, beside, scales_of
from ..weights.shards import read_shard
from ..weights.words import rows_of

WEIGHTS = "model.safetensors"
# Other files of weights, in the order in which they are looked for.
OTHER_WEIGHTS = ("medusa_lm_head.safetensors", "pytorch_model.bin", "medusa_lm_head.pt")


def weight_files(path: Path) -> list[Path]:
    """The files in the directory `path` that hold a head's tensors. Raises CheckpointError where there are none."""
    if (path / WEIGHTS).is_file() or (path / SAFETENSORS_INDEX).is_file():
        return shard_files(path)
    found = next((path / name for name in OTHER_WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} holds no head: there is none of {', '.join((WEIGHTS, *OTHER_WEIGHTS))}.")
    return [found]


def described(path: Path) -> dict[str, Tensor]:
    """The tensors in the directory `path` on the meta device. Raises CheckpointError where a file is damaged or cut short."""
    return HeadTensors.of(path, "meta").tensors


@dataclass(frozen=True)
class Values:
    """The values of a tensor, which need not be in memory yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    # Its bytes, in pieces of any size.
    chunks: Callable[[], Iterable[Tensor]]

    @classmethod
    def of(cls, tensor: Tensor) -> Values:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: [flat(tensor.contiguous())])

    def whole(self) -> Tensor:
        """A new tensor with all of them."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return next(iter(self.rows(self.shape[0]))) if self.shape else next(iter(self.rows(1)))[0]

    def rows(self, count: int) -> Iterator[Tensor]:
        """New tensors with `count` rows each, in order; the last one has what is left."""
        shape = self.shape or (1,)
        row = math.prod(shape[1:]) * self.dtype.itemsize
        left, into, filled = shape[0], torch.empty(0, dtype=torch.uint8), 0
        for chunk in self.chunks():
            while len(chunk):
                if not len(into):
                    into = torch.empty(min(count, left) * row, dtype=torch.uint8)
                some = min(len(chunk), len(into) - filled)
                into[filled : filled + some] = chunk[:some]
                chunk, filled = chunk[some:], filled + some
                if filled == len(into):
                    left -= len(into) // row
                    yield into.view(self.dtype).view(-1, *shape[1:])
                    into, filled = into[:0], 0


def unpacked_chunks(info: TensorInfo, codes: Iterable[Tensor], read: Callable[[TensorInfo], Tensor]) -> Iterator[Tensor]:
    """The bytes of a weight that is published quantised. `codes`: the bytes of its codes, in pieces of any size; `read` reads what
    else it is made of, and codes that do not stand row by row."""
    packed, count = info.packed, math.prod(info.shape[:-1])
    assert packed is not None and not packed.fault, f"{info.name} is not packed, or cannot be used"
    codes = [flat(rows_of(packed.order, read(packed.codes), 0, count))] if packed.order else codes
    scales = read(packed.scales)
    rows, first = Values(torch.uint8, (count, packed.row_bytes), lambda: codes), 0
    for some in rows.rows(max(TOGETHER // packed.columns, 1)):
        own, more = scales_of(packed, scales, first, len(some)), beside(packed, read, first, len(some))
        yield flat(packed.values(some, own, first, info.dtype, more))
        first += len(some)


@dataclass(frozen=True)
class HeadTensors:
    """The tensors of a head's directory by their names. Matrices of safetensors files are on the meta device: their values are read
    when asked for, so that no more of them need be held than one piece."""

    tensors: dict[str, Tensor]
    # Where the values of those on the meta device are, by id.
    files: dict[int, TensorInfo]

    @classmethod
    def of(cls, path: Path, where: str = "cpu") -> HeadTensors:
        """Those in the directory `path`. Raises CheckpointError where a file is damaged or cut short."""
        made = cls({}, {})
        for file in weight_files(path):
            if file.suffix == ".safetensors":
                made._add(file, where)
            else:
                made.tensors.update(_of_torch(file, where))
        return made

    def _add(self, file: Path, where: str) -> None:
        for info in read_shard(file).tensors:
            if where == "meta" or len(info.shape) > 1:
                tensor = torch.empty(info.shape, dtype=info.dtype, device="meta")
                self.files[id(tensor)] = info
            else:
                tensor = read_tensor(info.file, info.offset, info.dtype, info.shape, CheckpointError)
            self.tensors[info.name] = tensor

    def values(self, tensor: Tensor) -> Values:
        """The values of one of `tensors`, or of one that was made of them and is in memory."""
        if not tensor.is_meta:
            return Values.of(tensor)
        info = self.files[id(tensor)]
        size = tensor.numel() * tensor.itemsize
        return Values(info.dtype, tuple(info.shape), partial(byte_chunks, info.file, info.offset, size, CheckpointError))


def _of_torch(file: Path, where: str) -> dict[str, Tensor]:
    with quoted(CheckpointError, f"{file} cannot be read", "Get it again.", pickle.UnpicklingError, EOFError):
        content = torch.load(file, map_location=where, weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} should hold tensors by their names, and nothing else. Get it again.")
    return content
