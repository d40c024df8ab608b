"""Where a trained head comes from: a directory of its own, or the checkpoint of the model that it drafts for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..models.stock.wrapper import text_config
from ..weights.checkpoint import TensorInfo
from ..weights.layout import ModelLayout
from ..weights.published import unpacked
from ..weights.store import Store
from . import DraftHead, HeadConfig, TargetFacts, files
from .held import Holding


class HeadSource(Protocol):
    """A head that is not read yet."""

    @property
    def config(self) -> HeadConfig:
        """What it is."""

    def load(self, holding: Holding) -> DraftHead:
        """The head, held as `holding` says. Raises CheckpointError or StoreError where it cannot be read."""


@dataclass(frozen=True)
class HeadDirectory:
    """A head in a directory of its own, ours or published."""

    path: Path
    config: HeadConfig

    @classmethod
    def of(cls, path: Path) -> HeadDirectory:
        """The head in `path`. Raises CheckpointError where there is none that can be read."""
        return cls(path, files.config_of(path))

    def load(self, holding: Holding) -> DraftHead:
        return files.load(self.path, holding)


@dataclass(frozen=True)
class Bearer:
    """The model that a head drafts for, and what its checkpoint holds beside its text model."""

    # What users call it.
    name: str
    # Its transformers config.
    config: Any
    # Shapes of the tensors that its text model does not use, by name.
    aside: Mapping[str, tuple[int, ...]]
    # Those of them that are copies of its embedding table, and of its output head.
    embeddings: frozenset[str]
    outputs: frozenset[str]
    # Where they can be read; None: it is not prepared yet.
    store: Store | None = None
    # Those of them that are published quantised, of which codes and scales are stored.
    packed: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)
    # Shapes of its text model's norms and biases, by name.
    shared: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    # Heads that were found in it, by the name of their format: a plan asks several times.
    found: dict[str, HeadSource | None] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of_store(cls, store: Store, config: Any) -> Bearer:
        """A model that is prepared."""
        head = list(store.linears.values())[-1]
        infos = {name: _info(store, name) for name, stored in store.extra.items()}
        aside = unpacked(store.config, infos)
        alike = {name: stored.checksum for name, stored in store.extra.items()}
        return cls(
            store.source.name, config, _shapes(aside), _named(alike, store.embedding.checksum), _named(alike, head.checksum), store,
            _packed(aside), {name: stored.shape for name, stored in store.shared.items()},
        )  # fmt: skip

    @classmethod
    def foretold(cls, name: str, config: Any, tensors: Mapping[str, TensorInfo], layout: ModelLayout) -> Bearer:
        """A model that is not prepared yet. Tables as large as its own are taken for copies."""
        aside = {name: tensors[name] for names in layout.aside.values() for name in names}
        shapes = _shapes(aside)
        embedding, output = tensors[layout.embedding].shape, tensors[layout.linears[-1].weight].shape
        own = _shapes({name: tensors[name] for name in layout.shared})
        return cls(name, config, shapes, _named(shapes, embedding), _named(shapes, output), None, _packed(aside), own)

    @property
    def facts(self) -> TargetFacts:
        """What a head notes of it, and is compared with, as far as it is known."""
        text = text_config(self.config)
        named = getattr(self.config, "architectures", None) or [""]
        fingerprint = "" if self.store is None else self.store.source.fingerprint
        return TargetFacts(text.hidden_size, text.vocab_size, text.num_hidden_layers, named[0], fingerprint)


def _named(values: Mapping[str, Any], wanted: Any) -> frozenset[str]:
    """The names of those of `values` that are as `wanted`."""
    return frozenset(name for name, value in values.items() if value == wanted)


def _shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(info.shape) for name, info in tensors.items()}


def _packed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Those of `tensors` that are published quantised."""
    return {name: info for name, info in tensors.items() if info.packed is not None}


def _info(store: Store, name: str) -> TensorInfo:
    """Where a tensor lies that a Store holds as it is published."""
    stored = store.extra[name]
    return TensorInfo(name, stored.dtype, stored.shape, store.file(stored.file), stored.offset, stored.nbytes)
