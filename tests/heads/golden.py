"""What heads compute, said again: plain functions of whole sequences, without a cache, from the published descriptions.

A reference gives the features after the last accepted token and after each token of one path below it. `assert_golden` compares a
head with it, over a text that is read in two pieces and a branching tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from understudy.cache import Cache
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.layers import layer_shapes
from understudy.kernels.attention import AttentionSpec, attend_anywhere
from understudy.tree import Nodes, TokenTree

HIDDEN = 16
VOCABULARY = 40
EPSILON = 1e-5
THETA = 5000.0
# Two query heads share a head of keys; keys of more numbers than HIDDEN / heads, so that no size is taken for another.
HEADS, KV_HEADS, KEY = 4, 2, 6
FACTS = TargetFacts(HIDDEN, VOCABULARY, layers=8)
LAYER: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": KEY, "rms_norm_eps": EPSILON, "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
}  # fmt: skip
# Features [1 + m, hidden size] after the last accepted token and a path of m below it: of the target's hidden states
# [n, taps, hidden size], the embeddings [n, hidden size] of the tokens after them, and those [m, hidden size] of the path.
HeadType = TypeVar("HeadType", bound=nn.Module)
Reference = Callable[[Tensor, Tensor, Tensor], Tensor]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def rotated(x: Tensor) -> Tensor:
    """x [n, heads, KEY] turned by the angles of positions 0 to n - 1: number i and number i + KEY / 2 are one pair."""
    angles = torch.arange(len(x))[:, None] * THETA ** (-torch.arange(0, KEY, 2) / KEY)
    first, second = x.chunk(2, -1)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def attention(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Causal self-attention of x [n, any size] with the projections of `weights`, and with norms of each head's queries and keys
    where they have such."""
    query = (x @ weights["self_attn.q_proj.weight"].T).view(len(x), HEADS, KEY)
    key = (x @ weights["self_attn.k_proj.weight"].T).view(len(x), KV_HEADS, KEY)
    if "self_attn.q_norm.weight" in weights:
        query, key = norm(query, weights["self_attn.q_norm.weight"]), norm(key, weights["self_attn.k_norm.weight"])
    query, key = rotated(query), rotated(key)
    value = (x @ weights["self_attn.v_proj.weight"].T).view(len(x), KV_HEADS, KEY)
    out = torch.zeros(len(x), HEADS, KEY)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        for place in range(len(x)):
            scores = key[: place + 1, shared] @ query[place, head] / math.sqrt(KEY)
            out[place, head] = scores.softmax(0) @ value[: place + 1, shared]
    return out.flatten(1) @ weights["self_attn.o_proj.weight"].T


def feed_forward(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    gate = x @ weights["mlp.gate_proj.weight"].T
    return (gate * gate.sigmoid() * (x @ weights["mlp.up_proj.weight"].T)) @ weights["mlp.down_proj.weight"].T


def layer(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """One decoder layer over x [n, hidden size]; without a norm at its input where `weights` have none."""
    first = weights.get("input_layernorm.weight")
    x = x + attention(x if first is None else norm(x, first), weights)
    return x + feed_forward(norm(x, weights["post_attention_layernorm.weight"]), weights)


def linear(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return x @ weights["weight"].T + weights["bias"]


def residual_block(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    inner = linear(x, part(weights, "linear."))
    return x + inner * inner.sigmoid()


def gated(x: Tensor, embedded: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Clover's attention decoder for one token, x and embedded [hidden size]: as many cosines as attention heads."""
    query = linear(norm(x, weights["norm.weight"]), part(weights, "query."))
    key, value = (linear(embedded, part(weights, name)) for name in ("key.", "value."))
    out, size = x.clone(), HIDDEN // HEADS
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        cosine = query[own] @ key[own] / (query[own].pow(2).sum().sqrt() * key[own].pow(2).sum().sqrt())
        out[own] += cosine * value[own]
    return out


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of `weights` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def randomized(head: HeadType, seed: int = 0) -> HeadType:
    """`head` with random weights of a size that makes every part of it matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4 + (1.0 if "norm" in name else 0.0))
    return head.requires_grad_(False).eval()


@dataclass
class HeadPass:
    """A pass of a head's layers over `nodes` of a cache."""

    cache: Cache
    nodes: Nodes
    expert_kernels: None = None

    def write_kv(self, index: int, keys: Tensor, values: Tensor) -> None:
        self.cache.write(index, self.nodes, None, keys, values)

    def attend(self, index: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        state = self.cache.layers[index]
        return attend_anywhere(query, state.keys, state.values, self.nodes, spec)


class HeadRun:
    """A head that reads a text and drafts, as a drafter would have it."""

    def __init__(self, head: DraftHead, table: Tensor):
        self.head = head
        self.table = table
        self.cache = Cache(layer_shapes(head.config), 1, 128, torch.float32)

    def begin(self, hidden: Tensor, nodes: Nodes) -> Tensor:
        return self._run(nodes, lambda places: self.head.begin(hidden[None], self.table[nodes.tokens][None], places))

    def follow(self, states: Tensor, depth: int, nodes: Nodes) -> Tensor:
        return self._run(nodes, lambda places: self.head.follow(states[None], self.table[nodes.tokens][None], depth, places))

    def _run(self, nodes: Nodes, run: Callable[[Places], Tensor]) -> Tensor:
        def enter(layer: int, which: Tensor) -> None:
            own = nodes.picked(which)
            tail = torch.where(own.tail < 0, own.tail, own.tail - layer)
            own = replace(own, slots=own.slots - layer, positions=own.positions - layer, prefix=own.prefix - layer, tail=tail)
            self.head.current.under_way = HeadPass(self.cache, own)  # type: ignore[assignment]

        enter(0, torch.arange(len(nodes)))
        states = run(Places(nodes.positions[None], enter=enter))[0]
        self.head.current.under_way = None
        return states


@dataclass
class GoldenCase:
    """A text, the target's hidden states at its tokens, and a tree below its last token."""

    # [n + 1] tokens, of which the last has not been run by the target.
    text: Tensor
    # [n, taps, hidden size]
    hidden: Tensor
    # [vocab, hidden size]
    table: Tensor
    tree: TokenTree

    @classmethod
    def of(cls, config: HeadConfig, depth: int, seed: int = 1) -> GoldenCase:
        """One with a tree of two branches, `depth` edges deep."""
        generator = torch.Generator().manual_seed(seed)
        size, vocabulary = config.target.hidden_size, config.target.vocab_size
        text = torch.randint(vocabulary, (14,), generator=generator)
        hidden = torch.randn(13, len(config.taps), size, generator=generator)
        table = torch.randn(vocabulary, size, generator=generator)
        parents = [-1] + [max(0, index - 2) for index in range(1, 2 * depth + 1)]
        tokens = [int(text[-1]), *torch.randint(vocabulary, (2 * depth,), generator=generator).tolist()]
        return cls(text, hidden, table, TokenTree.of(tokens, parents))


def assert_golden(head: DraftHead, reference: Reference, depth: int) -> None:
    """`head` gives the features of `reference` after the last token of a text and after each node of a tree below it."""
    case = GoldenCase.of(head.config, depth)
    table = case.table if head.embedding is None else head.embedding
    run = HeadRun(head, table)
    pairs = case.text[1:]
    chain = Nodes.of(TokenTree.chain(pairs[:-1].tolist()), 0, 0)
    lag = head.lag
    for piece in (slice(0, 5), slice(5 - lag, len(chain))):
        run.begin(case.hidden[:-1][piece], chain[piece])
    run.cache.lengths[0] = len(chain) - lag
    nodes, depths = Nodes.of(case.tree, 0, len(chain)), case.tree.depths
    states = torch.zeros(len(nodes), head.state_size)
    again = Nodes.of(TokenTree.chain(pairs[len(chain) - lag :].tolist()), 0, len(chain) - lag)
    states[:1] = run.begin(case.hidden[-1 - lag :], again)[-1:]
    for level in range(1, depth + 1):
        (there,) = (depths == level).nonzero(as_tuple=True)
        part_of = slice(int(there[0]), int(there[-1]) + 1)
        states[part_of] = run.follow(states[case.tree.parents[part_of]], level, nodes[part_of])
    for node, path in enumerate(case.tree.paths):
        expected = reference(case.hidden, table[pairs], table[torch.tensor(path, dtype=torch.int64)])
        level = int(depths[node])
        got = head.features(states[node][None, None], level)[0, 0]
        torch.testing.assert_close(got, expected[level], rtol=2e-4, atol=2e-5, msg=lambda text, n=node: f"node {n}: {text}")
