"""A world of known hidden states for draft heads: an exact model whose states tell the text before them, and a head that notes, in
its own cache, which state it was given with which token."""

import random
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from understudy.cache import Cache
from understudy.devices.processor import Processor
from understudy.drafters.head_runner import HeadRunner
from understudy.engine import Choose
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.kernels.attention import AttentionSpec
from understudy.layer_states import LayerShape
from understudy.tree import Nodes

VOCABULARY, SIZE, CAPACITY = 11, 3, 900
# Keys are hidden states, values are tokens.
SHAPE = LayerShape(1, SIZE, SIZE)
FACTS = TargetFacts(SIZE, VOCABULARY)


def told(text: Sequence[int]) -> list[float]:
    """The hidden state [SIZE] at the last token of `text`, before all others: no two texts have the same."""
    seed = zlib.crc32(bytes(text))
    return [float(len(text)), float(seed % 4099), float(seed // 4099 % 4099)]


def chosen(text: Sequence[int]) -> int:
    """The exact model's token after `text`."""
    return random.Random(zlib.crc32(bytes(text))).randrange(VOCABULARY)


class NotingHead(DraftHead):
    """Its state of a token is the hidden state and the token that it was given, and below that the states of all its ancestors."""

    attends_in_tree = True

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        under_way: Any = self.current.under_way
        if under_way is not None:
            under_way.write_kv(0, hidden[0], embedded[0, :, None])
            spec = AttentionSpec(scaling=1.0)
            seen = under_way.attend(0, torch.zeros_like(hidden[0]), spec)
            assert torch.isfinite(seen).all()
        return hidden[:, :, 0] + embedded

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        under_way: Any = self.current.under_way
        if under_way is not None:
            under_way.write_kv(0, torch.full_like(states[0], torch.nan)[:, None], embedded[0, :, None])
        return 2 * states + embedded

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states + depth


class LaggingHead(NotingHead):
    """The same in three layers: each is given with a token the hidden state that the one before was given with the token before."""

    lag = 2

    @property
    def state_size(self) -> int:
        return 3 * SIZE

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        assert places.ages is not None
        reads = hidden[:, :, 0]
        parts = [reads + embedded]
        for layer in range(3):
            which = (places.ages >= layer).nonzero()[:, 0]
            if len(which):
                places.of_layer(layer, which)
                under_way: Any = self.current.under_way
                under_way.write_kv(layer, reads[0, which][:, None], embedded[0, which][:, None])
                seen = under_way.attend(layer, torch.zeros_like(reads[0, which])[:, None], AttentionSpec(scaling=1.0))
                assert torch.isfinite(seen).all()
            parts.append(reads)
            reads = torch.cat((torch.zeros_like(reads[:, :1]), reads[:, :-1]), 1)
        return torch.cat(parts[:3], -1)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        for layer in range(depth, 3):
            places.of_layer(layer, torch.arange(states.shape[1]))
            under_way: Any = self.current.under_way
            under_way.write_kv(layer, torch.full_like(embedded[0], torch.nan)[:, None], embedded[0, :, None])
        return states


class Target:
    """An exact model of `rows` rows. Keys are tokens, so it reads its texts where the slots say."""

    def __init__(self, rows: int):
        self.cache = Cache([LayerShape(1, 1, 1)], rows, CAPACITY, torch.float32)
        self.device = Processor(threads=1)
        self.vocabulary = VOCABULARY

    def texts(self, nodes: Nodes) -> list[list[int]]:
        self.cache.layers[0].write(nodes, nodes.tokens.float()[:, None, None], torch.zeros(len(nodes), 1, 1))
        keys = self.cache.layers[0].keys
        return [[int(t) for t in keys[int(nodes.rows[i]), 0, nodes.slots_in_order(i), 0]] for i in range(len(nodes))]

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
        texts = self.texts(nodes)
        hidden = torch.tensor([told(text) for text in texts])[:, None]
        logits = torch.zeros(len(wanted), VOCABULARY)
        for place, node in enumerate(wanted.tolist()):
            logits[place, chosen(texts[node])] = 9
        return (choose(logits, 0) if len(wanted) else torch.empty(0)), hidden

    def embed(self, tokens: Tensor) -> Tensor:
        return tokens.float()[:, None].expand(-1, SIZE)

    def score(self, features: Tensor) -> Tensor:
        raise NotImplementedError


def runner(target: Any, layers: int = 1) -> HeadRunner:
    """A head that notes what it is given, in no layer, in one or in three."""
    head = (LaggingHead if layers > 1 else NotingHead)(HeadConfig("noting", FACTS, taps=(-1,), layers=layers))
    return HeadRunner(head, [SHAPE] * layers, target, torch.float32)


def noted(cache: Cache, row: int, layer: int = 0) -> list[tuple[list[float], int]]:
    """The hidden states and tokens that were given to a layer for the text of `row`."""
    count, state = cache.lengths[row], cache.layers[layer]
    return [(state.keys[row, 0, i].tolist(), int(state.values[row, 0, i, 0])) for i in range(count)]


def expected(text: Sequence[int], layer: int = 0) -> list[tuple[list[float], int]]:
    """What a layer is to be given of `text`: each token from number `layer` + 1 on, and the hidden state at so many before it."""
    return [(told(text[: i - layer]), text[i]) for i in range(1 + layer, len(text))]
