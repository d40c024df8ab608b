"""The target while a head is trained: its embeddings and its output head, exact and frozen, and nothing of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..heads import TargetFacts
from ..models.shape import ModelShape
from ..models.unprepared import unprepared
from ..models.wrapper import Hidden
from ..weights.store import Store


class FrozenTarget(nn.Module):
    """What a head is trained against. All of it is float32 and has no gradient of its own.

    `config` is the transformers config of the model in `store`. Raises StoreError where weights cannot be read."""

    def __init__(self, store: Store, config: Any):
        super().__init__()
        self.facts = facts_of(store, config)
        bound = unprepared(config, torch.float32, store.layout, lambda name: store.read(store.shared[name]), (1, 64))
        causal: Any = bound.module
        self.causal = causal
        spec = store.layout.linears[-1]
        parent, _, name = spec.module.rpartition(".")
        streamed: Any = causal.get_submodule(spec.module)
        linear = nn.Linear(spec.shape[1], spec.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(torch.cat([rows.float() for rows in store.rows_of(store.linears[spec.module])]))
        linear.bias = streamed.bias
        setattr(causal.get_submodule(parent), name, linear)
        self.head = linear
        self.table: Any = causal.get_input_embeddings()
        tied = spec.weight == store.layout.embedding
        self.table.weight = linear.weight if tied else nn.Parameter(store.read(store.embedding).float())
        self._features: Tensor | None = None
        bound.base.forward = self._base
        self.requires_grad_(False).eval()

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [b, n, hidden size] of tokens [b, n], as the model's own table gives them."""
        embedded: Tensor = self.table(tokens)
        return embedded

    def score(self, features: Tensor) -> Tensor:
        """Logits [b, n, vocab] of features [b, n, hidden size], with whatever the model does to its logits."""
        self._features = features
        causal: Any = self.causal
        logits: Tensor = causal(input_ids=features.new_zeros(features.shape[:2], dtype=torch.int64)).logits
        self._features = None
        return logits

    def _base(self, *_: Any, **__: Any) -> Hidden:
        """In the place of all layers: the features at hand."""
        assert self._features is not None
        return Hidden(self._features)


def facts_of(store: Store, config: Any) -> TargetFacts:
    """What a head notes of the model in `store`, of which `config` is the transformers config."""
    shape = ModelShape.of(config)
    named = getattr(config, "architectures", None) or [""]
    return TargetFacts(shape.hidden_size, store.embedding.shape[0], len(shape.layers), named[0], store.source.fingerprint)
