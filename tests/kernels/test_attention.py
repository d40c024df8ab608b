"""The position-ordered kernel against plain gathered attention; the same bits however the heads are shared out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import trees
from understudy.kernels import attention
from understudy.kernels.attention import AttentionSpec
from understudy.layer_states import FullState, LayerShape
from understudy.small_keys import size_in, stored
from understudy.tree import Nodes, TokenTree


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
