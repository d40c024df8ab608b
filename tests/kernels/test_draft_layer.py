"""A drafted layer between its products: turned queries attend over turned keys, which are kept, for any rows, trees and windows."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_draft_attention import rows_of_nodes
from understudy.kernels import draft_layer
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.attention import attend as exact
from understudy.kernels.head_form import HeadForm, Made, Turning
from understudy.kernels.join_form import Norm
from understudy.layer_states import FullState, LayerShape, SlidingState
from understudy.rectangle import PaddedState
from understudy.small_keys import plain, size_in, stored
from understudy.tree import Nodes, TokenTree

FORM = HeadForm(AttentionSpec(0.3))

def turned(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """heads [n, any, size] turned as transformers does it."""
    first, second = heads.chunk(2, -1)
    return heads * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]


def filled(state: FullState) -> FullState:
    for slab in (state.keys, state.values):
        slab.copy_(stored(torch.randn(*slab.shape[:3], size_in(slab)), slab))
    return state


def two_alike() -> tuple[FullState, FullState]:
    """Caches of one row that hold the same."""
    state, other = (FullState(LayerShape(2, 16, 16), 1, 64, torch.float32) for _ in range(2))
    filled(state)
    other.keys.copy_(state.keys)
    other.values.copy_(state.values)
    return state, other


@settings(max_examples=40, deadline=None)
@given(
    nodes=rows_of_nodes(), window=st.sampled_from([0, 1, 7, 30]), group=st.integers(1, 3), size=st.sampled_from([8, 16, 20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), slides=st.booleans(), small=st.booleans(),
    softcap=st.sampled_from([0.0, 0.0, 2.0]),
)  # fmt: skip
def test_it_is_turning_keeping_and_the_exact_attention(
    nodes: Nodes, window: int, group: int, size: int, dtype: torch.dtype, slides: bool, small: bool, softcap: float
) -> None:
    torch.manual_seed(len(nodes))
    shape = LayerShape(2, 16, size, window=window, small=small)
    ours = filled(SlidingState(shape, 3, 48, dtype) if slides and window else FullState(shape, 3, 64, dtype))
    other = type(ours)(shape, 3, ours.keys.shape[2], dtype)
    other.keys.copy_(ours.keys)
    other.values.copy_(ours.values)
    count, heads = len(nodes), 2 * group
    queries, keys, values = torch.randn(count, heads, 16), torch.randn(count, 2, 16), torch.randn(count, 2, size)
    angles = torch.rand(count, 8).repeat(1, 2) * 6
    made = torch.cat([part.flatten(1) for part in (queries, keys, values)], 1).to(dtype)
    turns = angles.cos().to(dtype), angles.sin().to(dtype)
    spec = AttentionSpec(0.3, window, softcap)
    found = draft_layer.attend(made, turns, ours, nodes, HeadForm(spec))
    cosines, sines = (turn.float() for turn in turns)
    other.write(nodes, turned(keys.to(dtype).float(), cosines, sines), values)
    wanted = exact(turned(queries.to(dtype).float(), cosines, sines), other.keys, other.values, nodes, spec)
    close = 1e-5 if dtype == torch.float32 else 0.02
    # Codes of numbers that are turned in another order may be one step apart.
    off = 0.06 if small else close
    assert torch.allclose(plain(ours.keys).float(), plain(other.keys).float(), atol=off)
    assert torch.allclose(plain(ours.values).float(), plain(other.values).float(), atol=off if small else 0.0)
    assert torch.allclose(found.float(), wanted.flatten(1), atol=off)


@settings(max_examples=30, deadline=None)
@given(
    nodes=rows_of_nodes(), window=st.sampled_from([0, 1, 7, 30]), group=st.integers(1, 3),
    sizes=st.sampled_from([(64, 32), (32, 96)]),
)  # fmt: skip
def test_pairs_of_bfloat16_attend_as_exact_attention_does_and_a_node_has_bits_of_its_own(
    nodes: Nodes, window: int, group: int, sizes: tuple[int, int]
) -> None:
    """Where the processor multiplies pairs; elsewhere numbers are multiplied one by one."""
    torch.manual_seed(len(nodes))
    (key, value), count = sizes, len(nodes)
    shape = LayerShape(2, key, value, window=window)
    ours, other = (FullState(shape, 3, 64, torch.bfloat16) for _ in range(2))
    filled(ours)
    other.keys.copy_(ours.keys)
    other.values.copy_(ours.values)
    queries, keys, values = (torch.randn(count, 2 * group, key), torch.randn(count, 2, key), torch.randn(count, 2, value))
    made = torch.cat([part.flatten(1) for part in (queries, keys, values)], 1).bfloat16()
    angles = torch.rand(count, key // 2).repeat(1, 2) * 6
    turns, form = (angles.cos().bfloat16(), angles.sin().bfloat16()), HeadForm(AttentionSpec(0.1, window))
    found = draft_layer.attend(made, turns, ours, nodes, form)
    cosines, sines = (turn.float() for turn in turns)
    other.write(nodes, turned(keys.bfloat16().float(), cosines, sines), values)
    wanted = exact(turned(queries.bfloat16().float(), cosines, sines), other.keys, other.values, nodes, form.spec)
    assert torch.allclose(found.float(), wanted.flatten(1), atol=0.04)
    for i in range(count):
        alone = draft_layer.attend(made[i : i + 1], (turns[0][i : i + 1], turns[1][i : i + 1]), ours, nodes[i : i + 1], form)
        assert torch.equal(alone[0], found[i]), f"node {i} has other bits alone"


def test_threads_and_other_nodes_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    nodes = Nodes.of(TokenTree.of([0] * 6, [-1, 0, 0, 1, 2, 2]), 0, 30)
    state = filled(FullState(LayerShape(4, 16, 16), 1, 64, torch.bfloat16))
    made, angles = torch.randn(6, 16 * (8 + 4 + 4)).bfloat16(), torch.rand(6, 16)
    turns = angles.cos().bfloat16(), angles.sin().bfloat16()
    together = draft_layer.attend(made, turns, state, nodes, FORM)
    alone = [
        draft_layer.attend(made[i : i + 1], (turns[0][i : i + 1], turns[1][i : i + 1]), state, nodes[i : i + 1], FORM)
        for i in range(6)
    ]
    assert torch.equal(torch.cat(alone), together)
    monkeypatch.setattr(draft_layer, "SMALL", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(draft_layer.attend(made, turns, state, nodes, FORM), together)
    finally:
        torch.set_num_threads(before)


def test_rows_of_a_padded_cache_overlap() -> None:
    """A row of such a cache begins at any of its places, and the heads of a row lie far apart."""
    torch.manual_seed(1)
    shape = LayerShape(2, 16, 16)
    padded, plain = PaddedState(shape, [0, 0, 0], 64, torch.float32), FullState(shape, 1, 64, torch.float32)
    nodes = Nodes.of(TokenTree.of([0] * 5, [-1, 0, 0, 1, 2]), 0, 9)
    begins = 70
    for slab, other in ((padded.keys, plain.keys), (padded.values, plain.values)):
        other.copy_(torch.randn(other.shape))
        slab[begins] = other[0]
    made, angles = torch.randn(5, 16 * (4 + 2 + 2)), torch.rand(5, 16)
    turns = angles.cos(), angles.sin()
    placed = replace(nodes, rows=torch.full((5,), begins))
    found = draft_layer.attend(made, turns, padded, placed, FORM)
    assert torch.equal(found, draft_layer.attend(made, turns, plain, nodes, FORM))
    assert torch.equal(padded.keys[begins], plain.keys[0]) and torch.equal(padded.values[begins], plain.values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_may_be_a_part_of_keys(dtype: torch.dtype) -> None:
    """Heads that share one key may also be told that each has its own, which all lie at one place."""
    torch.manual_seed(2)
    joined, apart = (FullState(LayerShape(1, 24, 16, latent=latent), 1, 64, dtype) for latent in (True, False))
    joined.keys.normal_()
    apart.keys.copy_(joined.keys)
    apart.values.copy_(joined.values)
    nodes, angles = Nodes.of(TokenTree.of([0] * 5, [-1, 0, 0, 1, 2]), 0, 20), torch.rand(5, 8)
    turns, form = (angles.cos().to(dtype), angles.sin().to(dtype)), HeadForm(AttentionSpec(0.3), last=True)
    queries, states, further = torch.randn(5, 4 * 24), torch.randn(5, 16), torch.randn(5, 8)
    key = torch.cat([states, further], 1)
    wanted = draft_layer.attend(torch.cat([queries, key, states], 1).to(dtype), turns, apart, nodes, form)
    twice = copy.copy(joined)
    twice.keys, twice.values = (slab.expand(-1, 2, -1, -1) for slab in (joined.keys, joined.values))
    found = draft_layer.attend(torch.cat([queries, key, key, states, states], 1).to(dtype), turns, twice, nodes, form)
    assert torch.equal(found, wanted)
    assert torch.equal(joined.keys, apart.keys) and torch.equal(joined.values, apart.values)


def by_hand(heads: Tensor, weights: Tensor, turn: Turning, angles: tuple[Tensor, Tensor]) -> Tensor:
    """heads [n, any, size], normed with weights [size], or all of a node together with weights [any, size], and turned."""
    over = heads if weights.dim() == 1 else heads.flatten(1)[:, None]
    x = heads * (over.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * weights
    if turn is Turning.NONE:
        return x
    cosines, sines = (part.repeat(1, 2) if turn is Turning.SHARED else part for part in angles)
    inside, rest = x[..., : cosines.shape[1]], x[..., cosines.shape[1] :]
    if turn in (Turning.HALVES, Turning.SHARED):
        return torch.cat([turned(inside, cosines, sines), rest], -1)
    half = cosines.shape[1] // 2
    even, odd, cosine, sine = inside[..., ::2], inside[..., 1::2], cosines[:, None, :half], sines[:, None, :half]
    both = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1 if turn is Turning.PAIRS else -2)
    return torch.cat([both.flatten(-2), rest], -1)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("turn", list(Turning))
def test_heads_are_normed_and_turned_in_every_way(turn: Turning, partly: bool, together: bool, sinks: bool) -> None:
    torch.manual_seed(3)
    nodes = Nodes.of(TokenTree.of([0] * 6, [-1, 0, 0, 1, 2, 2]), 0, 30)
    state, other = two_alike()
    queries, keys, values = torch.randn(6, 4, 16), torch.randn(6, 2, 16), torch.randn(6, 2, 16)
    weights = [torch.rand(heads, 16) + 0.5 if together else torch.rand(16) + 0.5 for heads in (4, 2)]
    half = torch.randn(6, 4 if partly else 8)
    angles = half if turn is Turning.SHARED else half.repeat(1, 2)
    turns = angles.cos(), angles.sin()
    spec = AttentionSpec(0.3, sinks=torch.randn(4) if sinks else None)
    query, key = (Norm(weight, 1e-3) for weight in weights)
    made = torch.cat([part.flatten(1) for part in (queries, keys, values)], 1)
    found = draft_layer.attend(made, turns, state, nodes, HeadForm(spec, turn, (query, key)))
    other.write(nodes, by_hand(keys, weights[1], turn, turns), values)
    wanted = exact(by_hand(queries, weights[0], turn, turns), other.keys, other.values, nodes, spec)
    assert torch.allclose(state.keys, other.keys, atol=1e-5) and torch.equal(state.values, other.values)
    assert torch.allclose(found, wanted.flatten(1), atol=1e-5)


@pytest.mark.parametrize("turn", list(Turning))
def test_the_numbers_that_are_turned_may_be_the_last_ones(turn: Turning) -> None:
    torch.manual_seed(4)
    nodes = Nodes.of(TokenTree.of([0] * 6, [-1, 0, 0, 1, 2, 2]), 0, 30)
    states = [filled(FullState(LayerShape(2, 16, 16), 1, 64, torch.float32)) for _ in range(2)]
    made, norm = torch.randn(6, 8, 16), Norm(torch.ones(16), 1e-3)
    angles = torch.randn(6, 3 if turn is Turning.SHARED else 6)
    turns = angles.cos(), angles.sin()
    # scores do not change where queries and keys are sorted alike, so the same with all numbers the other way round is the same
    aside = torch.cat([torch.arange(10, 16), torch.arange(10)])
    other = torch.cat([made[:, :6, aside], made[:, 6:]], 1)
    states[1].keys.copy_(states[0].keys[..., aside])
    states[1].values.copy_(states[0].values)
    form = HeadForm(AttentionSpec(0.3), turn, (norm, norm))
    given = (part.flatten(1).contiguous() for part in (made, other))
    forms = replace(form, last=True), form
    found, wanted = (draft_layer.attend(x, turns, state, nodes, f) for x, state, f in zip(given, states, forms, strict=True))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(states[0].keys[..., aside], states[1].keys, atol=1e-6) and torch.equal(states[0].values, states[1].values)


@pytest.mark.parametrize("turn", [Turning.HALVES, Turning.NONE])
def test_a_gate_may_follow_each_query(turn: Turning) -> None:
    torch.manual_seed(5)
    nodes = Nodes.of(TokenTree.of([0] * 5, [-1, 0, 0, 1, 2]), 0, 12)
    state, other = two_alike()
    queries, gates, keys, values = torch.randn(5, 4, 16), torch.randn(5, 4, 16), torch.randn(5, 2, 16), torch.randn(5, 2, 16)
    angles = torch.rand(5, 8).repeat(1, 2)
    turns, norm = (angles.cos(), angles.sin()), Norm(torch.rand(16) + 0.5, 1e-3)
    rest = [keys.flatten(1), values.flatten(1)]
    plain_form = HeadForm(AttentionSpec(0.3), turn, (norm, norm))
    wanted = draft_layer.attend(torch.cat([queries.flatten(1), *rest], 1), turns, other, nodes, plain_form)
    made = torch.cat([torch.cat([queries, gates], -1).flatten(1), *rest], 1)
    found = draft_layer.attend(made, turns, state, nodes, replace(plain_form, gated=True))
    assert torch.allclose(found, wanted * gates.flatten(1).sigmoid(), atol=1e-6)
    assert torch.equal(state.keys, other.keys) and torch.equal(state.values, other.values)


@pytest.mark.parametrize("made", list(Made))
@pytest.mark.parametrize("normed", [False, True])
def test_values_may_be_normed_or_be_keys_and_both_may_be_those_of_another_layer(made: Made, normed: bool) -> None:
    torch.manual_seed(7)
    nodes = Nodes.of(TokenTree.of([0] * 6, [-1, 0, 0, 1, 2, 2]), 0, 30)
    state, other = two_alike()
    queries, keys, values = torch.randn(6, 4, 16), torch.randn(6, 2, 16), torch.randn(6, 2, 16)
    weights = [torch.rand(16) + 0.5 for _ in range(2)]
    angles = torch.randn(6, 8).repeat(1, 2)
    turns = angles.cos(), angles.sin()
    query, key = (Norm(weight, 1e-3) for weight in weights)
    form = HeadForm(AttentionSpec(0.3), Turning.HALVES, (query, key), 1e-2 if normed else None, made=made)
    count = {Made.ALL: 3, Made.ONE_FOR_BOTH: 2, Made.QUERIES: 1}[made]
    line = torch.cat([part.flatten(1) for part in (queries, keys, values)[:count]], 1)
    found = draft_layer.attend(line, turns, state, nodes, form)
    if made is not Made.QUERIES:
        own = keys if made is Made.ONE_FOR_BOTH else values
        own = own * (own.square().mean(-1, keepdim=True) + 1e-2).rsqrt() if normed else own
        other.write(nodes, by_hand(keys, weights[1], Turning.HALVES, turns), own)
    wanted = exact(by_hand(queries, weights[0], Turning.HALVES, turns), other.keys, other.values, nodes, form.spec)
    assert torch.allclose(state.keys, other.keys, atol=1e-5) and torch.allclose(state.values, other.values, atol=1e-5)
    assert torch.allclose(found, wanted.flatten(1), atol=1e-5)
