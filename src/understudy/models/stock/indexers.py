"""The index of layers with sparse attention (DeepSeek-V3.2, arXiv 2512.02556, and those that have it from there): stock code makes
its keys, queries and weights, and the pass under way keeps the keys and says what each node looks at.

Stock code is run as it is, whatever norms and turns it has. It is handed a cache that notes the keys, and gives it in their place
what notes what they are multiplied by: first the queries, then the weights of the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...kernels.attention import ALL, Chosen
from ...kernels.chosen_keys import IndexQuery
from .compressors import compresses
from .pooled_index import pools

# The values of a stock index that say how many tokens a node looks at; or how many blocks, of how many tokens, and how many of the
# latest always.
TOKENS, BLOCKS = ("index_topk",), ("topk_blocks", "block_size", "local_blocks")
# What a stock index calls its cache.
CACHE = "past_key_values"
# In stock attention: whether it takes what an index before it chose.
SHARES = "skip_topk"


class IndexRecorder:
    """What a stock index asks, noted while its code runs: this stands for its cache, for the keys of all tokens, and for all that
    it makes of them."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        # Queries [1, n, heads, size], then weights [1, n, 1, heads]; or queries alone, [1, heads, n, size].
        self.factors: list[Tensor] = []

    def update_indexer(self, keys: Tensor, layer: int, *_: Any, **__: Any) -> IndexRecorder:
        """As in caches of transformers: keys [1, n, size] of the pass's nodes are put there, and those of all tokens come back."""
        self.keys = keys
        return self

    def update_index(self, keys: Tensor) -> IndexRecorder:
        """The same with keys [1, 1, n, size]."""
        return self.update_indexer(keys[0], 0)

    @property
    def shape(self) -> Sequence[int]:
        """As if there were one token, which stock code asks for its number: nothing comes of it."""
        return (1, 1, 1)

    def __getattr__(self, name: str) -> Any:
        """A method of a tensor, or the places that `topk` found."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> IndexRecorder:
        return self

    def __getitem__(self, layer: Any) -> IndexRecorder:
        return self

    def __iter__(self) -> Iterator[IndexRecorder]:
        """Values and places, as `topk` finds both."""
        return iter((self, self))

    def __mul__(self, factor: float) -> IndexRecorder:
        return self

    def __add__(self, mask: Any) -> IndexRecorder:
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> IndexRecorder:
        own: IndexRecorder = next(each for each in args if isinstance(each, cls))
        if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and isinstance(args[0], Tensor):
            own.factors.append(args[0])
        return own

    def query(self, index: Any) -> IndexQuery | None:
        """What was asked by a stock `index`; None where it was not asked as is known here."""
        if self.keys is None:
            return None
        match [factor.squeeze(0) for factor in self.factors]:
            case [queries, weights] if _is(index, TOKENS) and self._fits(queries) and weights.shape[1:] == (1, queries.shape[1]):
                return IndexQuery(queries, weights[:, 0], 1.0, index.index_topk)
            case [queries] if _is(index, BLOCKS) and self._fits(queries.transpose(0, 1)):
                return IndexQuery(queries.transpose(0, 1), None, 1.0, *(getattr(index, name) for name in BLOCKS))
        return None

    def _fits(self, queries: Tensor) -> bool:
        """Are these [n, heads, size], of as many nodes and numbers as the keys?"""
        assert self.keys is not None
        return queries.dim() == 3 and (len(queries), queries.shape[2]) == self.keys.shape[1:]


def _is(module: Any, names: Sequence[str]) -> bool:
    """Is it a stock index that is told so?"""
    return all(isinstance(getattr(module, name, None), int) for name in names)


def install_indexers(model: nn.Module) -> int:
    """Let each index of the stock `model` ask the pass under way; returns how many there are."""
    count = 0
    for module in model.modules():
        if compresses(module) or pools(module):
            continue
        if _is(module, TOKENS) or _is(module, BLOCKS):
            names = list(signature(type(module).forward).parameters)[1:]
            module.register_forward_pre_hook(partial(_noted, names), with_kwargs=True)
            module.register_forward_hook(_chosen, with_kwargs=True)
            count += 1
        if hasattr(module, "indexer") or hasattr(module, SHARES):
            module.register_forward_pre_hook(_no_mask, with_kwargs=True)
    return count


def _noted(
    names: Sequence[str], _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What an index is `given`, whose forward calls it `names`, with what notes in the place of its cache."""
    return (), {**dict(zip(names, given, strict=False)), **named, CACHE: IndexRecorder()}


def _chosen(index: Any, _: tuple[Any, ...], named: dict[str, Any], out: Any) -> Chosen:
    """What the pass under way chooses for a stock `index` that has run."""
    asked: IndexRecorder = named[CACHE]
    query = asked.query(index)
    if query is None:
        raise CheckpointError(f"{type(index).__name__} chooses tokens in a way that is not supported yet.")
    assert asked.keys is not None
    if asked.keys.is_meta:
        return ALL
    chosen: Chosen = index.understudy.under_way.choose(index.layer_idx, asked.keys[0], query)
    return chosen


def _no_mask(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Stock attention cuts a mask for its index, and a pass has none: it is given one without numbers."""
    if named.get("attention_mask") is None:
        named = {**named, "attention_mask": torch.empty(1, 1, 0, 0)}
    return given, named
