"""Linears, caches and attention of a stock model hand their input to the pass under way, and do nothing themselves."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from understudy.errors import CheckpointError
from understudy.kernels.attention import AttentionSpec
from understudy.models.streamed import (
    CurrentPass,
    StreamedLinear,
    attention,
    attention_name,
    pair,
    pass_cache,
)


class Noting:
    """A pass that notes what it is handed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def linear(self, index: int, x: Tensor) -> Tensor:
        self.calls.append(("linear", index, tuple(x.shape)))
        return x.sum(1, keepdim=True).repeat(1, 3)

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.calls.append(("write", layer, keys, values))

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        self.calls.append(("attend", layer, tuple(query.shape), spec))
        return query


class Block(nn.Module):
    layer_idx = 5

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 3, bias=False)


def paired() -> tuple[Block, CurrentPass, Noting]:
    block, current, noting = Block(), CurrentPass(), Noting()
    pair(block, ["second", "first"], current)
    current.under_way = noting
    return block, current, noting


def test_a_linear_multiplies_through_the_pass_and_adds_its_bias() -> None:
    block, current, noting = paired()
    assert isinstance(block.first, StreamedLinear) and block.first.weight.numel() == 0 and block.second.bias is None
    block.first.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    assert block.first(torch.ones(1, 4, 2)).tolist() == [[[3.0, 4.0, 5.0]] * 4]
    assert noting.calls == [("linear", 1, (4, 2))], "Linears are numbered in the order that was given"
    current.under_way = None
    with pytest.raises(AssertionError, match="target or draft view"):
        block.first(torch.ones(1, 2))


def test_attention_to_keys_that_were_chosen_is_refused() -> None:
    block, _, _ = paired()
    query, key = torch.empty(1, 4, 7, 16, device="meta"), torch.empty(1, 2, 7, 16, device="meta")
    with pytest.raises(CheckpointError, match=r"attends to some keys alone \(block_indices\)"):
        attention(block, query, key, key, block_indices=torch.zeros(1))
    assert attention(block, query, key, key, indices=None)[0].shape == (1, 7, 4, 16)


def test_a_cache_keeps_nothing() -> None:
    _, _, noting = paired()
    keys, values = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    cache = pass_cache()
    assert cache.update(keys, values, 3) == (keys, values) and cache.get_seq_length() == 0
    assert not noting.calls


def test_attention_is_handed_what_the_model_says() -> None:
    block, _, noting = paired()
    query, key, value, sinks = torch.randn(1, 4, 7, 16), torch.randn(1, 2, 7, 16), torch.randn(1, 2, 7, 8), torch.zeros(4)
    out, weights = attention(block, query, key, value)
    assert torch.equal(out, query.transpose(1, 2)) and weights is None
    attention(block, query, key, value, scaling=0.5, sliding_window=9, softcap=20.0, s_aux=sinks)
    written, attended = noting.calls[::2], noting.calls[1::2]
    assert attended == [
        ("attend", 5, (7, 4, 16), AttentionSpec(0.25)),
        ("attend", 5, (7, 4, 16), AttentionSpec(0.5, 9, 20.0)),
    ]
    assert attended[0][3].sinks is None and attended[1][3].sinks is sinks
    for name, layer, keys, values in written:
        assert (name, layer) == ("write", 5)
        assert torch.equal(keys, key[0].transpose(0, 1)) and torch.equal(values, value[0].transpose(0, 1))
    on_meta = attention(block, query.to("meta"), key.to("meta"), value.to("meta"))[0]
    assert on_meta.shape == (1, 7, 4, 8) and on_meta.is_meta and len(noting.calls) == 4


def test_nothing_is_imported_or_registered_before_it_is_used() -> None:
    code = "import sys, understudy.models.streamed; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    from transformers import AttentionInterface

    assert AttentionInterface()[attention_name()] is attention
