"""The position-ordered kernel against plain gathered attention; the same bits however the heads are shared out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_tree import trees
from understudy.cache import FullState, LayerShape
from understudy.kernels import attention
from understudy.kernels.attention import AttentionSpec
from understudy.tree import Nodes, TokenTree


def filled(shape: LayerShape, rows: int, capacity: int, dtype: torch.dtype) -> FullState:
    """A layer's state of random keys and values."""
    state = FullState(shape, rows, capacity, dtype, "cpu")
    state.keys.normal_()
    state.values.normal_()
    return state


@settings(max_examples=25, deadline=None)
@given(
    trees(20),
    st.integers(0, 150),
    st.sampled_from([0, 5, 70]),
    st.sampled_from([0.0, 8.0]),
    st.sampled_from([(4, 2, 64), (3, 1, 20), (2, 2, 32)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_kernel_is_attention_over_what_each_node_sees(
    tree: TokenTree, length: int, window: int, softcap: float, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    heads, kv_heads, dim = shape
    torch.manual_seed(length)
    state = filled(LayerShape(kv_heads, dim, dim), 2, 256, dtype)
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 5), 0, 61)])
    query = torch.randn(len(nodes), heads, dim).to(dtype)
    spec = AttentionSpec(0.3, window, softcap)
    found = attention.attend(query, state.keys, state.values, nodes, spec)
    expected = attention.attend_anywhere(query, state.keys, state.values, nodes, spec)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    assert torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


def test_sharing_the_heads_out_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH_SHARING", 0)
    state = filled(LayerShape(5, 64, 64), 1, 320, torch.bfloat16)
    nodes = Nodes.of(TokenTree.chain([1] * 32), 0, 200)
    given = torch.randn(32, 10, 64).bfloat16(), state.keys, state.values, nodes, AttentionSpec(0.125)
    alone = attention.attend(*given)
    with ThreadPoolExecutor(3) as pool:
        for threads in (2, 3):
            assert torch.equal(alone, attention.attend(*given, pool=pool, threads=threads))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(0, 130), st.sampled_from([0, 70]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_in_plain_torch_too_a_node_has_the_same_bits_alone(
    data: st.DataObject, length: int, window: int, dtype: torch.dtype
) -> None:
    tree = data.draw(trees(40))
    torch.manual_seed(length)
    keys, values = (torch.randn(2, 2, 256, 32).to(dtype) for _ in range(2))
    nodes = Nodes.of(tree, 1, length)
    query = torch.randn(len(nodes), 4, 32).to(dtype)
    spec = AttentionSpec(0.3, window)
    together = attention.attend_anywhere(query, keys, values, nodes, spec)
    for node in (0, len(nodes) - 1, len(nodes) // 2):
        part = slice(node, node + 1)
        alone = attention.attend_anywhere(query[part], keys, values, nodes[part], spec)
        assert torch.equal(alone, together[part])
