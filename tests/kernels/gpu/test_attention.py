"""The GPU's attention against float64 and against the CPU's; and a node's bits, whatever else is in the pass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from tests.test_tree import trees
from understudy.kernels import attention as by_cpu
from understudy.kernels.attention import AttentionSpec
from understudy.layer_states import FullState, LayerShape, SlidingState
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
from understudy.kernels.gpu import attention

# heads, heads of keys, key size, value size
SHAPES = [(4, 2, 64, 64), (3, 1, 20, 20), (2, 2, 32, 32), (7, 1, 16, 16), (2, 2, 24, 20), (3, 1, 16, 40)]


def reference(query: Tensor, state: FullState, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """float64, node by node."""
    out = torch.empty(*query.shape[:2], state.values.shape[3], dtype=torch.float64)
    group = query.shape[1] // state.keys.shape[1]
    for i in range(len(nodes)):
        slots = nodes.slots_in_order(i)
        slots = slots[-spec.window :] if spec.window else slots
        k, v = (
            slab[int(nodes.rows[i])][:, slots].double().repeat_interleave(group, 0)
            for slab in (state.keys, state.values)
        )
        scores = (k @ query[i].double()[..., None])[..., 0] * spec.scaling
        scores = spec.softcap * torch.tanh(scores / spec.softcap) if spec.softcap else scores
        sinks = torch.full((query.shape[1],), -torch.inf) if spec.sinks is None else spec.sinks
        weights = torch.cat([scores, sinks.double()[:, None]], -1).softmax(-1)[:, :-1]
        out[i] = (weights[:, None] @ v)[:, 0]
    return out


def attend(query: Tensor, state: FullState, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    keys, values = state.keys.to(DEVICE), state.values.to(DEVICE)
    if spec.sinks is not None:
        spec = replace(spec, sinks=spec.sinks.to(DEVICE))
    return attention.attend(query.to(DEVICE), keys, values, nodes.to(DEVICE), spec).cpu()


def filled(kv_heads: int, dim: int, dtype: torch.dtype, seed: int, size: int | None = None) -> FullState:
    torch.manual_seed(seed)
    state = FullState(LayerShape(kv_heads, dim, size or dim), 2, 256, dtype, "cpu")
    state.keys.normal_()
    state.values.normal_()
    return state


@settings(max_examples=20, deadline=None)
@given(
    trees(12),
    st.integers(0, 150),
    st.sampled_from([0, 5, 70]),
    st.sampled_from([0.0, 8.0]),
    st.sampled_from(SHAPES),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_it_is_attention_over_what_each_node_sees(
    tree: TokenTree, length: int, window: int, softcap: float, shape: tuple[int, int, int, int], sinks: bool, dtype: torch.dtype
) -> None:
    heads, kv_heads, dim, size = shape
    state = filled(kv_heads, dim, dtype, length, size)
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 3), 0, 61)])
    for slab in (state.keys, state.values):  # what lies beyond is never read
        slab[1, :, length + len(tree) :] = torch.nan
    query = torch.randn(len(nodes), heads, dim).to(dtype)
    spec = AttentionSpec(0.3, window, softcap, 2 * torch.randn(heads).to(dtype) if sinks else None)
    found = attend(query, state, nodes, spec).double()
    exact = reference(query, state, nodes, spec)
    theirs = by_cpu.attend(query, state.keys, state.values, nodes, spec).double()
    narrow = dtype == torch.bfloat16
    assert (found - exact).norm() / exact.norm() < (
        5e-3 if narrow else 2e-6
    )  # Triton's interpreter cuts to bfloat16 and does not round
    assert torch.allclose(found, theirs, atol=2e-2 if narrow else 2e-5, rtol=2e-2 if narrow else 2e-5)


@settings(max_examples=10, deadline=None)
@given(trees(12), st.integers(0, 180), st.sampled_from([5, 40]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_layer_that_slides_gives_the_bits_of_one_that_holds_everything(
    tree: TokenTree, length: int, window: int, dtype: torch.dtype
) -> None:
    full = filled(2, 32, dtype, length)
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 3), 0, 61)])
    last = length + len(tree) - 1
    sliding = SlidingState(LayerShape(2, 32, 32, window), 2, 64, dtype)
    for row, end in ((1, last), (0, 63)):
        slots = torch.arange(max(0, end - 63), end + 1)
        sliding.keys[row][:, slots % 64] = full.keys[row][:, slots]
        sliding.values[row][:, slots % 64] = full.values[row][:, slots]
    query = torch.randn(len(nodes), 4, 32).to(dtype)
    spec = AttentionSpec(0.3, window)
    assert torch.equal(attend(query, sliding, nodes, spec), attend(query, full, nodes, spec))


@settings(max_examples=10, deadline=None)
@given(
    st.data(), st.integers(0, 130), st.sampled_from([0, 70]), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_node_has_the_same_bits_in_a_tree_in_a_chain_and_alone(
    data: st.DataObject, length: int, window: int, sinks: bool, dtype: torch.dtype
) -> None:
    """The same keys and values at the same positions: in slots between siblings, or one after another."""
    tree = data.draw(trees(20).filter(lambda tree: len(tree) > 2))
    node = data.draw(st.integers(1, len(tree) - 1))
    path = tree.ancestors[node].nonzero()[:, 0]
    size = 20 if sinks else 32
    state = filled(2, 32, dtype, length, size)
    straight = FullState(LayerShape(2, 32, size), 2, 256, dtype, "cpu")
    for mine, theirs in ((straight.keys, state.keys), (straight.values, state.values)):
        mine[0, :, :length] = theirs[1, :, :length]
        mine[0, :, length : length + len(path)] = theirs[1, :, length + path]
    query = torch.randn(len(tree), 4, 32).to(dtype)
    spec = AttentionSpec(0.2, window, sinks=torch.randn(4).to(dtype) if sinks else None)
    nodes = Nodes.of(tree, 1, length)
    other = Nodes.of(TokenTree.chain([1] * 2), 0, 40)
    in_tree = attend(torch.cat([query[:2], query]), state, Nodes.join([other, nodes]), spec)[2 + path]
    chain = Nodes.of(TokenTree.chain([1] * len(path)), 0, length)
    assert torch.equal(in_tree, attend(query[path], straight, chain, spec))
    assert torch.equal(in_tree[-1:], attend(query[node : node + 1], state, nodes[node : node + 1], spec))


@settings(max_examples=12, deadline=None)
@given(
    trees(8), st.integers(0, 130), st.sampled_from([(3, 40, 8), (20, 64, 24), (17, 16, 0)]), st.sampled_from([0, 30]),
    st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_latent_states_are_keys_whose_first_numbers_are_values(
    tree: TokenTree, length: int, sizes: tuple[int, int, int], window: int, sinks: bool, dtype: torch.dtype
) -> None:
    """More heads than go through them together, too; each node has the bits that it has alone."""
    heads, rank, turned = sizes
    torch.manual_seed(length)
    state = FullState(LayerShape(1, rank + turned, rank, latent=True), 2, 256, dtype, "cpu")
    state.keys.normal_()
    state.keys[1, :, length + len(tree) :] = torch.nan
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 2), 0, 61)])
    query = torch.randn(len(nodes), heads, rank + turned).to(dtype)
    spec = AttentionSpec(0.15, window, 4.0, 2 * torch.randn(heads).to(dtype) if sinks else None)
    keys = state.keys.to(DEVICE)
    on = replace(spec, sinks=None if spec.sinks is None else spec.sinks.to(DEVICE))

    def found(which: slice) -> Tensor:
        there = nodes[which].to(DEVICE)
        return attention.attend(query[which].to(DEVICE), keys, keys[..., :rank], there, on).cpu()

    together, exact = found(slice(None)), reference(query, state, nodes, spec)
    assert (together.double() - exact).norm() / exact.norm() < (5e-3 if dtype == torch.bfloat16 else 2e-6)
    last = len(tree) - 1
    assert torch.equal(found(slice(last, last + 1)), together[last : last + 1])
