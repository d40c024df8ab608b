"""The index of layers with sparse attention (DeepSeek-V3.2, arXiv 2512.02556, and those that have it from there): stock code makes
its keys, queries and weights, and the pass under way keeps the keys and says what each node looks at.

Stock code is run as it is, whatever norms and turns it has. It is handed a cache that notes the keys, and gives it in their place
what notes what they are multiplied by: first the queries, then the weights of the heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...kernels.attention import ALL, Chosen
from ...kernels.chosen_keys import IndexQuery

# The value of a stock index that says how many tokens a node looks at.
MOST = "index_topk"
# In stock attention: whether it takes what an index before it chose.
SHARES = "skip_topk"


class Asked:
    """What a stock index asks, noted while its code runs: this stands for its cache, for the keys of all tokens, and for all that
    it makes of them."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        # Queries [1, n, heads, size], then weights [1, n, 1, heads].
        self.factors: list[Tensor] = []

    def update_indexer(self, keys: Tensor, layer: int, *_: Any, **__: Any) -> Asked:
        """As in caches of transformers: keys [1, n, size] of the pass's nodes are put there, and those of all tokens come back."""
        self.keys = keys
        return self

    @property
    def shape(self) -> Sequence[int]:
        """As if it had more tokens than any node looks at."""
        return (1, 1, 1 << 30)

    def __getattr__(self, name: str) -> Any:
        """A method of a tensor, or the places that `topk` found."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Asked:
        return self

    def __mul__(self, factor: float) -> Asked:
        return self

    def __add__(self, mask: Any) -> Asked:
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Asked:
        own: Asked = next(each for each in args if isinstance(each, cls))
        if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and isinstance(args[0], Tensor):
            own.factors.append(args[0])
        return own

    def query(self, most: int) -> IndexQuery | None:
        """What was asked; None where it was not asked as is known here."""
        if self.keys is None or [factor.dim() for factor in self.factors] != [4, 4]:
            return None
        queries, weights = self.factors[0][0], self.factors[1][0, :, 0]
        fits = queries.shape[:2] == weights.shape == (self.keys.shape[1], queries.shape[1])
        return IndexQuery(queries, weights, 1.0, most) if fits and self.keys.shape[2] == queries.shape[2] else None


def install_indexers(model: nn.Module) -> int:
    """Let each index of the stock `model` ask the pass under way; returns how many there are."""
    count = 0
    for module in model.modules():
        if isinstance(getattr(module, MOST, None), int):
            module.register_forward_pre_hook(_noted, with_kwargs=True)
            module.register_forward_hook(_chosen, with_kwargs=True)
            count += 1
        if hasattr(module, "indexer") or hasattr(module, SHARES):
            module.register_forward_pre_hook(_no_mask, with_kwargs=True)
    return count


def _noted(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return given, {**named, "past_key_values": Asked()}


def _chosen(index: Any, _: tuple[Any, ...], named: dict[str, Any], out: Any) -> Chosen:
    """What the pass under way chooses for a stock `index` that has run."""
    asked = named["past_key_values"]
    query = asked.query(int(getattr(index, MOST)))
    if query is None:
        raise CheckpointError(f"{type(index).__name__} chooses tokens in a way that is not supported yet.")
    if asked.keys.is_meta:
        return ALL
    chosen: Chosen = index.understudy.under_way.choose(index.layer_idx, asked.keys[0], query)
    return chosen


def _no_mask(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Stock attention cuts a mask for its index, and a pass has none: it is given one without numbers."""
    if named.get("attention_mask") is None:
        named = {**named, "attention_mask": torch.empty(1, 1, 0, 0)}
    return given, named
