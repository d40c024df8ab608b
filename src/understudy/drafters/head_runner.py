"""Runs a trained head for nodes of the target's rows, with a KV cache of the head's own.

Token j of a text is given to the head together with the target's hidden state at token j - 1, so the first token is never given to
it: token j has slot j - 1 and position j - 1 in the head's cache. Where further layers begin later with a text (`DraftHead.lag`),
it has slot j - 1 - l in layer l. Whoever calls numbers nodes as the target does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from types import MappingProxyType

import torch
import xxhash
from torch import Tensor

from ..cache import Cache
from ..heads import DraftHead, Places
from ..layer_states import LayerShape
from ..models.draft import Level
from ..models.stock.shape import cache_dtype
from ..tree import Nodes
from . import TargetModel


class HeadRunner:
    """A head on the target's device. What its layers keep of each token, `shapes` say.

    States are rows of tensors [n, state size], one for each node of a call, in their order."""

    # A head's own Linears are no streamed ones.
    linears: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({})
    # It lies where the target's head does.
    stages = None

    def __init__(self, head: DraftHead, shapes: Sequence[LayerShape], target: TargetModel, dtype: torch.dtype):
        self.head = head
        self.target = target
        self.device = target.device
        self.cache = Cache(shapes, target.cache.rows, target.cache.capacity, cache_dtype(dtype), target.device.where)

    def begin(self, nodes: Nodes, hidden: Tensor) -> Tensor:
        """States of `nodes`, before each of which the target has the hidden states `hidden` [n, taps, hidden size]. Their keys and
        values are written."""
        return self._run(nodes, lambda embedded, places: self.head.begin(hidden[None], embedded, places), attends=True)

    def follow(self, nodes: Nodes, parents: Tensor, depth: int) -> Tensor:
        """States of `nodes`, whose parents have the states `parents` [n, state size] and which lie `depth` edges below the last
        accepted token. Their keys and values are written, where the head attends in a tree."""

        def call(embedded: Tensor, places: Places) -> Tensor:
            return self.head.follow(parents[None], embedded, depth, places)

        return self._run(nodes, call, self.head.attends_in_tree)

    def identity(self) -> str:
        """A digest of the head, by which its keys and values are told from those of others."""
        digest = xxhash.xxh3_128(json.dumps(asdict(self.head.config), sort_keys=True).encode())
        for name, tensor in self.head.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def logits(self, states: Tensor, depth: int) -> Tensor:
        """Logits [n, vocab] for the target's tokens after nodes with `states`, at `depth`; minus infinity where the head cannot say
        a token."""
        return self.whole(self.scores(states, depth))

    @torch.inference_mode()
    def scores(self, states: Tensor, depth: int) -> Tensor:
        """Logits [n, draft vocab] for the tokens that the head can say after nodes with `states`, at `depth`."""
        with self.device.sharing("head logits", len(states)):
            return self.head.scores(states[None], depth, self.target.score)[0]

    def whole(self, logits: Tensor) -> Tensor:
        """`logits` [n, draft vocab] for all of the target's tokens [n, vocab]: minus infinity where the head cannot say one."""
        if self.head.token_map is None:
            return logits
        whole = logits.new_full((len(logits), self.target.vocabulary), -torch.inf)
        whole[:, self.head.token_map] = logits
        return whole

    @torch.inference_mode()
    def _run(self, nodes: Nodes, call: Callable[[Tensor, Places], Tensor], attends: bool) -> Tensor:
        embedded = self._embedded(nodes.tokens)[None]
        current, where = self.head.current, self.device.where
        attends = attends and bool(self.cache.shapes)

        def enter(layer: int, which: Tensor) -> None:
            current.under_way = Level(self, _shifted(nodes.picked(which), 1 + layer).to(where))

        own = _shifted(nodes, 1).to(where)
        if self.head.lag:
            places = Places(own.positions[None], ages=_ages(nodes), enter=enter if attends else None)
        else:
            places = Places(own.positions[None])
            current.under_way = Level(self, own) if attends else None
        try:
            with self.device.sharing("head", len(nodes)):
                return call(embedded, places)[0]
        finally:
            current.under_way = None

    def _embedded(self, tokens: Tensor) -> Tensor:
        """[n, hidden size]: the head's own embeddings of tokens [n], or the target's."""
        table = self.head.embedding
        return self.target.embed(tokens) if table is None else table[tokens.to(table.device)]


def _shifted(nodes: Nodes, by: int) -> Nodes:
    """`nodes` as a layer of the head numbers them that has each token so many slots earlier than the target."""
    return replace(
        nodes, slots=nodes.slots - by, positions=nodes.positions - by, prefix=nodes.prefix - by,
        tail=torch.where(nodes.tail < 0, nodes.tail, nodes.tail - by),
    )  # fmt: skip


def _ages(nodes: Nodes) -> Tensor:
    """[n] how many of `nodes` stand right before each of them, all of which are chains, in the text of its row."""
    ages = [0]
    for (row, position), later in pairwise(zip(nodes.rows.tolist(), nodes.positions.tolist(), strict=True)):
        ages.append(ages[-1] + 1 if later == (row, position + 1) else 0)
    return torch.tensor(ages)
