"""Heads on disk: a directory with config.json, in which a head's config stands beside the number of the format, and
model.safetensors. Published formats are read too (`formats`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import demo
from ..errors import CheckpointError, StoreError, UsageError, quoted
from ..models.taps import MIDDLE
from ..registry import find
from ..weights.checkpoint import read_object
from ..weights.hub import download
from . import BEFORE_NORM, HEADS, DraftHead, HeadConfig, TargetFacts
from .formats import ADVICE, FORMATS, HeadContent
from .held import WHOLE, Holding, hold, tensor_bytes
from .tensors import WEIGHTS, HeadTensors, described

CONFIG = "config.json"
# The key of config.json that tells a head of this package, and its only value so far.
MARK = "understudy_head"
VERSION = 1


def located(head: str, offline: bool = False) -> Path:
    """The directory of `head`, which names one, or a head on the Hugging Face hub; that is downloaded into its cache. "demo" is the
    built-in model's. Raises CheckpointError where there is neither."""
    if head == demo.NAME:
        return demo.head_path()
    path = Path(head).expanduser()
    return path if path.is_dir() else download(head, offline, wanted=("*.json", "*.safetensors", "*.bin", "*.pt"))


def config_of(path: Path) -> HeadConfig:
    """What the head in the directory `path` is; values of tensors are not read. Raises CheckpointError where it cannot be read, or
    is not whole."""
    return _opened(path, _raw(path), described(path))[0].config


def load(path: Path, holding: Holding) -> DraftHead:
    """The head in the directory `path`, held as `holding` says, not to be trained.

    Raises CheckpointError where it cannot be read, or is not whole."""
    raw = _raw(path)
    read = HeadTensors.of(path)
    content, head = _opened(path, raw, read.tensors)
    if (tokens := content.tensors.get("token_map")) is not None:
        _refuse_other_tokens(path, content.config, tokens)
    values = ((name, read.values(tensor)) for name, tensor in content.tensors.items())
    return hold(head, values, holding, lambda name, tensor: _refuse_bad_values(path, name, tensor))


def save(head: DraftHead, path: Path) -> None:
    """Write `head` to the directory `path`, in place of a head that may be there. Each file appears whole; config.json is the last.

    Raises UsageError where something else is in `path`, StoreError where it cannot be written."""
    if path.exists() and not _is_ours(path):
        raise UsageError(f"{path} is there already, and holds no head of Understudy: choose another place.")
    # Tensors that are one in memory are each written.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in head.state_dict().items()}
    config = json.dumps({MARK: VERSION, **asdict(head.config)}, indent=1) + "\n"
    with quoted(StoreError, f"The head cannot be written to {path}", "Is there room on the disk?", SafetensorError):
        path.mkdir(parents=True, exist_ok=True)
        with _appears(path / WEIGHTS) as partial:
            save_file(tensors, partial, {"format": "pt"})
        with _appears(path / CONFIG) as partial:
            partial.write_text(config)


def check(config: HeadConfig, target: TargetFacts, name: str = "The head") -> None:
    """Raise UsageError where the head called `name` was made for another model than `target`, and say in what they differ. What
    either of the two does not tell is not compared."""
    words = {
        "hidden_size": "hidden states of {} numbers", "vocab_size": "a vocabulary of {} tokens", "layers": "{} layers",
        "architecture": "the architecture {}", "fingerprint": "weights with the fingerprint {}",
    }  # fmt: skip
    for field, words_of in words.items():
        wanted, there = getattr(config.target, field), getattr(target, field)
        if wanted and there and wanted != there:
            raise UsageError(
                f"{name} is for a model with {words_of.format(wanted)}, and this one has {words_of.format(there)}: take a head that"
                " was trained for it."
            )
    numbers = [tap for tap in config.taps if tap not in (BEFORE_NORM, MIDDLE)]
    beyond = [tap for tap in numbers if not -target.layers - 1 <= tap <= target.layers]
    if target.layers and beyond:
        raise UsageError(f"{name} reads hidden state {beyond[0]}, and this model of {target.layers} layers has none such.")


def built(config: HeadConfig, device: str = "cpu") -> DraftHead:
    """A head of `config`, whose tensors have no meaning yet. Raises CheckpointError for a config that describes none."""
    if config.kind not in HEADS:
        raise CheckpointError(f"A head of kind {config.kind!r} is not known. Known: {', '.join(sorted(HEADS))}.")
    with quoted(CheckpointError, f"The config of this {config.kind} head is not usable", "Get it again."), torch.device(device):
        head: DraftHead = find("head", HEADS, config.kind)(config)
    return head


def head_bytes(config: HeadConfig, dtype: torch.dtype) -> int:
    """Bytes of all tensors of a head of `config` that computes in `dtype`."""
    return tensor_bytes(built(config, "meta"), dtype, WHOLE)


@contextmanager
def _appears(file: Path) -> Iterator[Path]:
    """Another name for `file`, under which it is written inside; it then takes its place, or is removed if that failed."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.touch()
        # Who may read a new file; safetensors lets its owner alone.
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Inside, a CheckpointError says that it is about `path`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _raw(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(f"There is no head in {path}: give the directory of one, with its {CONFIG}.")
    if not (path / CONFIG).exists():
        raise CheckpointError(f"{path} holds no head: there is no {CONFIG} in it.")
    return read_object(path / CONFIG)


def _is_ours(path: Path) -> bool:
    """Is `path` a directory with a head of this package, or an empty one?"""
    if not path.is_dir():
        return False
    return MARK in read_object(path / CONFIG) if (path / CONFIG).exists() else not any(path.iterdir())


def _own_config(path: Path, raw: Mapping[str, Any]) -> HeadConfig:
    from pydantic import TypeAdapter, ValidationError

    if raw[MARK] != VERSION:
        raise CheckpointError(f"{path / CONFIG} is in format {raw[MARK]!r}; this version reads {VERSION}. Update Understudy.")
    if unknown := sorted(raw.keys() - {MARK, *(field.name for field in fields(HeadConfig))}):
        raise CheckpointError(f"{path / CONFIG} has an unknown entry {unknown[0]!r}. Update Understudy, or get the head again.")
    try:
        told = json.dumps({name: value for name, value in raw.items() if name != MARK})
        return TypeAdapter(HeadConfig).validate_json(told, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path / CONFIG}: {place} is not usable ({first['msg']}). Get it again.") from None


def _opened(path: Path, raw: Mapping[str, Any], tensors: dict[str, Tensor]) -> tuple[HeadContent, DraftHead]:
    """The head in `path`, whose config is `raw` and whose files hold `tensors`, and one like it without values."""
    content = HeadContent(_own_config(path, raw), tensors) if MARK in raw else _translated(path, raw, tensors)
    with _about(path):
        head = built(content.config, "meta")
    _refuse_other_tensors(path, content.tensors, head.state_dict())
    return content, head


def _translated(path: Path, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HeadContent:
    """The head that is published in `path`, by the first format that fits."""
    for name in FORMATS:
        found = find("format of heads", FORMATS, name)()
        if found.fits(raw, tensors):
            with _about(path), quoted(CheckpointError, "The head's config cannot be used", ADVICE):
                content: HeadContent = found.translate(raw, tensors)
            return content
    known = ", ".join(["Understudy's own", *FORMATS])
    raise CheckpointError(f"{path} holds no head in a known format. Read are: {known}.")


def _refuse_other_tensors(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless `tensors` have the names and shapes of `wanted`."""
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"{path} lacks the tensor {missing[0]!r} and {len(missing) - 1} more. Get the head again.")
    if unexpected := [name for name in tensors if name not in wanted]:
        raise CheckpointError(
            f"{path} has a tensor {unexpected[0]!r} and {len(unexpected) - 1} more that its config does not tell of."
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, where its config tells of {list(wanted[name].shape)}"
            raise CheckpointError(f"{path}: the tensor {name!r} is {shapes}. Get the head again.")


def _refuse_bad_values(path: Path, name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where weights are no numbers."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{path}: the tensor {name!r} has NaN or infinite values. Get the head again.")


def _refuse_other_tokens(path: Path, config: HeadConfig, tokens: Tensor) -> None:
    """Raise CheckpointError where the head says tokens that are none of the target's."""
    highest, vocabulary = int(tokens.max()), config.target.vocab_size
    if int(tokens.min()) < 0 or highest >= vocabulary:
        worst = highest if highest >= vocabulary else int(tokens.min())
        raise CheckpointError(f"{path} says token {worst}, which is none of the {vocabulary} of its target. Get the head again.")
