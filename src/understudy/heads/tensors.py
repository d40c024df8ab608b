"""Tensors of a head's directory: safetensors, or what torch saved. Their names, types and shapes are read without their values."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, quoted
from ..weights.checkpoint import SAFETENSORS_INDEX, read_shard, shard_files
from ..weights.files import read_tensor

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
    return _tensors(path, "meta")


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors in the directory `path`, in memory. Raises CheckpointError where a file is damaged or cut short."""
    return _tensors(path, "cpu")


def _tensors(path: Path, where: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in weight_files(path):
        found |= _of_safetensors(file, where) if file.suffix == ".safetensors" else _of_torch(file, where)
    return found


def _of_safetensors(file: Path, where: str) -> dict[str, Tensor]:
    infos = read_shard(file).tensors
    if where == "meta":
        return {info.name: torch.empty(info.shape, dtype=info.dtype, device=where) for info in infos}
    return {info.name: read_tensor(info.file, info.offset, info.dtype, info.shape, CheckpointError) for info in infos}


def _of_torch(file: Path, where: str) -> dict[str, Tensor]:
    with quoted(CheckpointError, f"{file} cannot be read", "Get it again.", pickle.UnpicklingError, EOFError):
        content = torch.load(file, map_location=where, weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} should hold tensors by their names, and nothing else. Get it again.")
    return content
