"""Attention by tiles: what it rounds, when it is used, and that it multiplies tiles. What it computes is in test_attention.py."""

import pytest
import torch

from understudy.kernels import attention, attention_amx
from understudy.kernels.amx_dot import has_amx
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.weighted import BLOCK
from understudy.tree import Nodes, TokenTree


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def test_tiles_are_for_bfloat16_alone_and_even_sizes() -> None:
    by_tiles = has_amx()
    for dtype, dim, expected in ((torch.bfloat16, 64, by_tiles), (torch.float32, 64, False), (torch.bfloat16, 7, False)):
        keys = torch.zeros(1, 1, 64, dim, dtype=dtype)
        kernels = attention.kernels_for(keys[0, :, :1], keys, keys)
        assert (kernels.add is attention_amx.add) == expected and kernels.step == (BLOCK if expected else 1)
    mixed = attention.kernels_for(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64, 64).bfloat16(), torch.zeros(1, 1, 64, 64).bfloat16())
    assert mixed.add is not attention_amx.add


@pytest.mark.skipif(not has_amx(), reason="this processor multiplies no tiles, or the system does not let it")
def test_only_weights_are_rounded() -> None:
    """Three values of which weights are no bfloat16: the sums of values are those of rounded weights, divided by exact ones."""
    keys, values = torch.zeros(1, 1, 64, 32).bfloat16(), torch.zeros(1, 1, 64, 16).bfloat16()
    keys[0, 0, :3, 0] = torch.tensor([0.0, -1.0, -2.0])
    values[0, 0, :3, :3] = torch.eye(3)
    query = torch.zeros(1, 1, 32).bfloat16()
    query[0, 0, 0] = 1
    nodes = Nodes.of(TokenTree.chain([1]), 0, 2)
    found = attention.attend(query, keys, values, nodes, AttentionSpec(0.7))
    exact = torch.exp(torch.tensor([0.0, -0.7, -1.4]))
    expected = (exact.bfloat16().float() / exact.sum()).bfloat16()
    assert torch.equal(found[0, 0, :3], expected) and not bool(found[0, 0, 3:].any())


@pytest.mark.skipif(not has_amx(), reason="this processor multiplies no tiles, or the system does not let it")
def test_vectors_and_tiles_agree_but_for_that_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values, query = numbers(1, 2, 448, 64), numbers(1, 2, 448, 128), numbers(50, 8, 64)
    nodes = Nodes.of(TokenTree.of([1] * 50, [-1, *(max(0, i - 3) for i in range(49))]), 0, 380)
    spec = AttentionSpec(0.125, window=300)
    tiles = attention.attend(query, keys, values, nodes, spec)
    monkeypatch.setattr(attention, "has_amx", lambda: False)
    vectors = attention.attend(query, keys, values, nodes, spec)
    assert not torch.equal(tiles, vectors)
    assert float((tiles.float() - vectors.float()).abs().mean()) < 5e-4
    torch.testing.assert_close(tiles.float(), vectors.float(), atol=4e-3, rtol=1e-2)
