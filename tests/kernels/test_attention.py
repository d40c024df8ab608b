"""The position-ordered kernel against plain gathered attention; the same bits however the heads are shared out."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import trees
from understudy.kernels import attention
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.draft_attention import LevelAttention
from understudy.layer_states import FullState, LayerShape
from understudy.small_keys import size_in, stored
from understudy.tree import Nodes, TokenTree


@pytest.fixture(scope="module", params=["best", "vectors"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test with the processor's best kernels, and with vectors where those are tiles."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "vectors":
            if not attention.has_amx():
                pytest.skip("vectors are the best here")
            patch.setattr(attention, "has_amx", lambda: False)
        yield


def filled(shape: LayerShape, rows: int, capacity: int, dtype: torch.dtype) -> FullState:
    """A layer's state of random keys and values."""
    state = FullState(shape, rows, capacity, dtype, "cpu")
    for slab in (state.keys, state.values):
        slab.copy_(stored(torch.randn(*slab.shape[:3], size_in(slab)), slab))
    return state


@settings(max_examples=25, deadline=None)
@given(
    trees(20),
    st.integers(0, 150),
    st.sampled_from([0, 5, 70]),
    st.sampled_from([0.0, 8.0]),
    st.sampled_from([(4, 2, 64, 64), (3, 1, 20, 20), (2, 2, 32, 32), (4, 2, 24, 20), (2, 1, 16, 64)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_the_kernel_is_attention_over_what_each_node_sees(
    tree: TokenTree, length: int, window: int, softcap: float, shape: tuple[int, int, int, int], sinks: bool, dtype: torch.dtype,
    small: bool,
) -> None:  # fmt: skip
    heads, kv_heads, dim, size = shape
    torch.manual_seed(length)
    state = filled(LayerShape(kv_heads, dim, size, small=small), 2, 256, dtype)
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 5), 0, 61)])
    query = torch.randn(len(nodes), heads, dim).to(dtype)
    spec = AttentionSpec(0.3, window, softcap, 2 * torch.randn(heads).to(dtype) if sinks else None)
    found = attention.attend(query, state.keys, state.values, nodes, spec)
    expected = attention.attend_anywhere(query, state.keys, state.values, nodes, spec)
    assert found.shape == (len(nodes), heads, size) and found.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    assert torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    trees(20),
    st.integers(0, 150),
    st.sampled_from([0, 5, 70]),
    st.sampled_from([1, 7, 64, 100]),
    st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_bias_is_added_by_how_far_a_position_lies_before_the_node(
    tree: TokenTree, length: int, window: int, extent: int, heads: tuple[int, int], sinks: bool, dtype: torch.dtype
) -> None:
    """In the target and in a level, against one node's positions one by one; and its bits are those that it has alone."""
    torch.manual_seed(length)
    state = filled(LayerShape(heads[1], 24, 16), 2, 256, dtype)
    nodes = Nodes.join([Nodes.of(TokenTree.chain([1] * 5), 0, 61), Nodes.of(tree, 1, length)])
    query, bias = torch.randn(len(nodes), heads[0], 24).to(dtype), torch.randn(len(nodes) + 3, heads[0], extent)
    spec = AttentionSpec(0.3, window, sinks=torch.randn(heads[0]) if sinks else None, bias=bias)
    found = attention.attend(query, state.keys, state.values, nodes, spec)
    drafted = LevelAttention(nodes)(query, state.keys, state.values, spec)
    for node in range(len(nodes)):
        position, row = int(nodes.positions[node]), int(nodes.rows[node])
        seen = torch.arange(max(position + 1 - window, 0) if window else 0, position + 1)
        slots = nodes[node : node + 1].slots_at(seen[None])[0]
        k, v = (slab[row, :, slots].repeat_interleave(heads[0] // heads[1], 0).double() for slab in (state.keys, state.values))
        scores = (k @ query[node].double()[..., None])[..., 0] * 0.3
        far = position - seen
        scores[:, far < extent] += bias[node, :, far[far < extent]]
        if spec.sinks is not None:
            scores = torch.cat([scores, spec.sinks[:, None].double()], 1)
        expected = (scores.softmax(-1)[:, None, : len(seen)] @ v)[:, 0]
        tolerance = 3e-2 if dtype == torch.bfloat16 else 2e-5
        assert torch.allclose(found[node].double(), expected, atol=tolerance, rtol=tolerance)
        assert torch.allclose(drafted[node].double(), expected, atol=2 * tolerance, rtol=2 * tolerance)
        alone = attention.attend(query[node : node + 1], state.keys, state.values, nodes[node : node + 1], spec[node : node + 1])
        assert torch.equal(alone[0], found[node])


@pytest.mark.parametrize("attend", [attention.attend, attention.attend_anywhere])
@pytest.mark.parametrize("sink", [-1e4, 0.7, 60.0])
def test_a_sink_is_one_more_score_without_a_value(attend: Callable[..., Tensor], sink: float) -> None:
    state = filled(LayerShape(2, 16, 8), 1, 128, torch.float32)
    nodes, query = Nodes.of(TokenTree.chain([1] * 3), 0, 70), torch.randn(3, 4, 16)
    sinks = torch.tensor([sink, sink + 1, sink - 1, sink])
    found = attend(query, state.keys, state.values, nodes, AttentionSpec(0.3, sinks=sinks))
    for node, length in enumerate((71, 72, 73)):
        k, v = (slab[0, :, :length].repeat_interleave(2, 0).double() for slab in (state.keys, state.values))
        scores = torch.cat([(k @ query[node].double()[..., None])[..., 0] * 0.3, sinks[:, None].double()], -1)
        expected = (scores.softmax(-1)[:, None, :-1] @ v)[:, 0]
        assert torch.allclose(found[node].double(), expected, atol=1e-6)


def test_sharing_the_heads_out_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH_SHARING", 0)
    state = filled(LayerShape(5, 64, 64), 1, 320, torch.bfloat16)
    nodes = Nodes.of(TokenTree.chain([1] * 32), 0, 200)
    spec = AttentionSpec(0.125, sinks=torch.randn(10))
    given = torch.randn(32, 10, 64).bfloat16(), state.keys, state.values, nodes, spec
    alone = attention.attend(*given)
    with ThreadPoolExecutor(3) as pool:
        for threads in (2, 3):
            assert torch.equal(alone, attention.attend(*given, pool=pool, threads=threads))


def test_queries_that_share_one_head_of_keys_are_shared_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH_SHARING", 0)
    seen: list[tuple[int, ...]] = []
    state = filled(LayerShape(1, 40, 24, latent=True), 1, 320, torch.bfloat16)
    kernels = attention.kernels_for(torch.zeros(1, 1, 40).bfloat16(), state.keys, state.values)

    def noted(query: np.ndarray, *rest: Any) -> None:
        seen.append(query.shape[:2])
        kernels.attend(query, *rest)

    for count, sinks in ((1, None), (5, torch.randn(10)), (32, None)):
        nodes = Nodes.of(TokenTree.chain([1] * count), 0, 200)
        given = torch.randn(count, 10, 40).bfloat16(), state.keys, state.values, nodes, AttentionSpec(0.125, sinks=sinks)
        alone = attention.attend(*given)
        with ThreadPoolExecutor(2) as pool, monkeypatch.context() as patch:
            patch.setattr(attention, "kernels_for", lambda *_: replace(kernels, attend=noted))
            seen.clear()
            assert torch.equal(alone, attention.attend(*given, pool=pool, threads=2))
        assert seen == [(count, 5)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_a_part_of_keys_have_the_bits_of_others(dtype: torch.dtype) -> None:
    state = filled(LayerShape(1, 40, 24, latent=True), 2, 256, dtype)
    assert state.values.data_ptr() == state.keys.data_ptr() and state.values.shape[3] == 24
    nodes = Nodes.join([Nodes.of(TokenTree.of([1] * 5, [-1, 0, 0, 1, 2]), 1, 100), Nodes.of(TokenTree.chain([1] * 9), 0, 61)])
    query = torch.randn(len(nodes), 6, 40).to(dtype)
    found = attention.attend(query, state.keys, state.values, nodes, AttentionSpec(0.3))
    assert torch.equal(found, attention.attend(query, state.keys, state.values.contiguous(), nodes, AttentionSpec(0.3)))


def test_every_thread_has_the_same_share_where_nodes_can_be_cut_so() -> None:
    for heads, nodes, threads in ((3, 32, 2), (8, 32, 6), (1, 64, 4), (16, 40, 3), (2, 5, 4), (3, 1, 2), (8, 128, 2)):
        shares = attention.shares(heads, nodes, threads)
        work = [(last - first) * (end - start) for first, last, start, end in shares]
        assert sum(work) == heads * nodes
        done = {(head, node) for first, last, start, end in shares for head in range(first, last) for node in range(start, end)}
        assert len(done) == heads * nodes
        assert len(shares) <= threads or nodes < 8, shares
        assert nodes < 8 * threads or max(work) <= 1.1 * heads * nodes / threads


@pytest.mark.parametrize("count", [1, 9, 40, 130])
@pytest.mark.parametrize("length", [0, 50, 200])
def test_a_prompt_has_the_bits_of_its_tokens_one_by_one(count: int, length: int) -> None:
    state = filled(LayerShape(2, 32, 80), 1, 384, torch.bfloat16)
    nodes = Nodes.of(TokenTree.chain([1] * count), 0, length)
    query = torch.randn(count, 6, 32).bfloat16()
    for spec in (AttentionSpec(0.3), AttentionSpec(0.3, window=70, softcap=5.0)):
        together = attention.attend(query, state.keys, state.values, nodes, spec)
        for node in range(0, count, 7):
            part = slice(node, node + 1)
            assert torch.equal(attention.attend(query[part], state.keys, state.values, nodes[part], spec), together[part])


def test_what_is_no_number_reaches_no_node_that_does_not_see_it() -> None:
    state = filled(LayerShape(1, 32, 32), 1, 192, torch.bfloat16)
    nodes = Nodes.join([Nodes.of(TokenTree.chain([1] * 40), 0, 70), Nodes.of(TokenTree.of([1] * 4, [-1, 0, 0, 2]), 0, 110)])
    query = torch.randn(len(nodes), 2, 32).bfloat16()
    spec = AttentionSpec(0.3)
    before = attention.attend(query, state.keys, state.values, nodes, spec)
    # of the chain's node 20, and of the tree's node 1, whose only descendant it is
    for slot in (90, 111):
        state.keys[0, :, slot], state.values[0, :, slot] = torch.inf, torch.nan
    after = attention.attend(query, state.keys, state.values, nodes, spec)
    hidden = [*range(20)]
    assert torch.equal(after[hidden], before[hidden]) and bool(after[20:].isnan().all())
    state.values[0, :, 90] = state.keys[0, :, 90] = 1
    after = attention.attend(query, state.keys, state.values, nodes, spec)
    assert after[41].isnan().all() and not after[[*range(41), 42, 43]].isnan().any()


@pytest.mark.parametrize("attend", [attention.attend, attention.attend_anywhere])
@settings(max_examples=20, deadline=None)
@given(
    st.data(), st.integers(0, 130), st.sampled_from([0, 70]), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_node_has_the_same_bits_alone(
    attend: Callable[..., Tensor], data: st.DataObject, length: int, window: int, sinks: bool, dtype: torch.dtype
) -> None:
    tree = data.draw(trees(40))
    torch.manual_seed(length)
    state = filled(LayerShape(2, 32, 24 if sinks else 32), 2, 256, dtype)
    nodes = Nodes.of(tree, 1, length)
    query = torch.randn(len(nodes), 4, 32).to(dtype)
    spec = AttentionSpec(0.3, window, sinks=torch.randn(4).to(dtype) if sinks else None)
    together = attend(query, state.keys, state.values, nodes, spec)
    for node in (0, len(nodes) - 1, len(nodes) // 2):
        part = slice(node, node + 1)
        assert torch.equal(attend(query[part], state.keys, state.values, nodes[part], spec), together[part])
