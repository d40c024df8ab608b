"""The position-ordered kernel against plain gathered attention; the same bits however the heads are shared out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_tree import trees
from understudy.cache import Cache
from understudy.kernels import attention
from understudy.tree import Nodes, TokenTree


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
    cache = Cache(1, kv_heads, dim, 2, 256, dtype)
    cache.keys[0].normal_()
    cache.values[0].normal_()
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([1] * 5), 0, 61)])
    query = torch.randn(len(nodes), heads, dim).to(dtype)
    found = attention.attend(query, cache, 0, nodes, scaling=0.3, window=window, softcap=softcap)
    options = {"scaling": 0.3, "window": window, "softcap": softcap}
    expected = attention.attend_anywhere(query, cache.keys[0], cache.values[0], nodes, **options)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    assert torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


def test_sharing_the_heads_out_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH_SHARING", 0)
    cache = Cache(1, 5, 64, 1, 320, torch.bfloat16)
    cache.keys[0].normal_()
    cache.values[0].normal_()
    nodes = Nodes.of(TokenTree.chain([1] * 32), 0, 200)
    query = torch.randn(32, 10, 64).bfloat16()
    alone = attention.attend(query, cache, 0, nodes, scaling=0.125)
    with ThreadPoolExecutor(3) as pool:
        for threads in (2, 3):
            assert torch.equal(alone, attention.attend(query, cache, 0, nodes, scaling=0.125, pool=pool, threads=threads))


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
    options = {"scaling": 0.3, "window": window}
    together = attention.attend_anywhere(query, keys, values, nodes, **options)  # type: ignore[arg-type]
    for node in (0, len(nodes) - 1, len(nodes) // 2):
        part = slice(node, node + 1)
        alone = attention.attend_anywhere(query[part], keys, values, nodes[part], **options)  # type: ignore[arg-type]
        assert torch.equal(alone, together[part])
