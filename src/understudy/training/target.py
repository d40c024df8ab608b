"""The target while a head is trained: its embeddings and its output head, exact and frozen, and of its layers only copies of the
last one's weights, with which some heads begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..heads import TargetWeights
from ..heads.source import Bearer
from ..models.output_head import FeatureModel
from ..models.unprepared import unprepared
from ..weights.store import Store

# Logits that are in memory at once, at most: numbers.
MOST_LOGITS = 1 << 24


class FrozenLinear(nn.Linear):
    """A Linear whose weight does not change: what it is in the type that torch's autocast multiplies in is made once."""

    cast: Tensor | None = None
    # Rows that alone are multiplied (None: all), the rows of the latest such product, and their weights in its type.
    rows: Tensor | None = None
    named: Tensor | None = None
    chosen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self._weight(x)
        if self.rows is None:
            return nn.functional.linear(x, weight, self.bias)
        if self.chosen is None or self.chosen.dtype != weight.dtype or self.chosen.device != weight.device:
            self.chosen = weight.detach()[self.rows]
        return nn.functional.linear(x, self.chosen, None if self.bias is None else self.bias[self.rows])

    def _weight(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return self.weight
        if self.cast is None or self.cast.device != x.device:
            self.cast = self.weight.detach().to(torch.get_autocast_dtype(x.device.type))
        return self.cast

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Multiply by these rows alone meanwhile. Their weights are taken out once, as long as it is the same tensor that names
        them."""
        if rows is not self.named:
            self.named, self.chosen = rows, None
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None


class FrozenTarget(nn.Module):
    """What a head is trained against. All of it is float32 and has no gradient of its own.

    `config` is the transformers config of the model in `store`. Raises StoreError where weights cannot be read."""

    def __init__(self, store: Store, config: Any):
        super().__init__()
        self.facts = Bearer.of_store(store, config).facts
        bound = unprepared(config, torch.float32, store.layout, lambda name: store.read(store.shared[name]), (1, 64))
        causal: Any = bound.module
        self.causal: nn.Module = causal
        spec = store.layout.linears[-1]
        parent, _, name = spec.module.rpartition(".")
        streamed: Any = causal.get_submodule(spec.module)
        linear = FrozenLinear(spec.shape[1], spec.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(exact(store, spec.module))
        linear.bias = streamed.bias
        setattr(causal.get_submodule(parent), name, linear)
        self.head = linear
        self.table: Any = causal.get_input_embeddings()
        self.table.weight = linear.weight if is_tied(store) else nn.Parameter(store.read(store.embedding).float())
        self.store = store
        self.scored = FeatureModel(causal)
        self.requires_grad_(False).eval()

    @property
    def weights(self) -> TargetWeights:
        """Weights with which heads begin."""
        linears = [spec.module for spec in self.store.layout.linears]
        last = self._block_of(linears[-2])
        norms = {name: norm_weight(module) for name, module in self.causal.get_submodule(last).named_modules()}
        layer = {f"{name}.weight": weight for name, weight in norms.items() if weight is not None}
        for module in linears:
            if module.startswith(f"{last}."):
                layer[f"{module.removeprefix(f'{last}.')}.weight"] = exact(self.store, module)
        around: Any = self.causal.get_submodule(last.rpartition(".")[0].rpartition(".")[0])
        final = [weight for module in around.children() if (weight := norm_weight(module)) is not None]
        return TargetWeights(self.head.weight, final[-1] if final else None, layer)

    def _block_of(self, linear: str) -> str:
        """The path of the decoder block in which the Linear at path `linear` lies."""
        parts = linear.split(".")
        paths = [".".join(parts[:end]) for end in range(len(parts))]
        listed = next(path for path in paths if isinstance(self.causal.get_submodule(path), nn.ModuleList))
        return ".".join(parts[: listed.count(".") + 2])

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [b, n, hidden size] of tokens [b, n], as the model's own table gives them."""
        embedded: Tensor = self.table(tokens)
        return embedded

    def score(self, features: Tensor) -> Tensor:
        """Logits [b, n, vocab] of features [b, n, hidden size], with whatever the model does to its logits."""
        return self.scored(features)

    def score_among(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits [m, t] of features [m, hidden size] for `tokens` [t] alone, as `score` has them."""
        with self.head.only(tokens):
            return self.scored(features)

    @torch.no_grad()
    def first_choices(self, features: Tensor) -> Tensor:
        """The likeliest tokens [m] after features [m, hidden size]."""
        parts = torch.split(features, max(MOST_LOGITS // self.facts.vocab_size, 1))
        return torch.cat([self.score(part[None])[0].argmax(-1) for part in parts])


def exact(store: Store, module: str) -> Tensor:
    """The exact weight of a Linear, in float32."""
    return torch.cat([rows.float() for rows in store.rows_of(store.linears[module])])


def is_tied(store: Store) -> bool:
    """Are the embeddings the rows of the output head?"""
    return store.layout.linears[-1].weight == store.layout.embedding


@torch.no_grad()
def norm_weight(module: nn.Module) -> Tensor | None:
    """By what an RMSNorm multiplies, whether it holds that or what is added to 1; None for any other module."""
    parameters = dict(module.named_parameters())
    if list(parameters) != ["weight"] or parameters["weight"].dim() != 1:
        return None
    ones = torch.ones_like(parameters["weight"])
    weight: Tensor = module(ones[None])[0]
    x = torch.linspace(-1.0, 2.0, len(ones))
    same = torch.allclose(module(x[None])[0], x / x.square().mean().sqrt() * weight, atol=1e-3)
    return weight if same else None
