"""Attention that scales queries by position is told where each node of a pass stands."""

from typing import Any

import pytest
import torch

from tests.tiny import stock
from understudy.models.proving.proof import fault
from understudy.models.stock import own_positions
from understudy.models.stock.own_positions import CacheEnd, tell_positions
from understudy.models.streamed import pass_cache


def test_the_end_of_the_cache_makes_positions_right() -> None:
    positions = torch.tensor([[7, 8, 8, 9, 0]])
    cache = CacheEnd(pass_cache(positions))
    assert torch.equal(torch.arange(5) + cache.get_seq_length(3), positions[0])
    keys = torch.zeros(1)
    assert cache.update(keys, keys, 3) == (keys, keys) and cache.layers == []


def test_layers_that_scale_are_told() -> None:
    assert tell_positions(stock("llama4_text")) == 4 and tell_positions(stock("llama")) == 0


def test_layers_with_chunks_and_queries_scaled_by_position_are_proven() -> None:
    assert fault(stock("llama4_text").config) is None


def test_the_proof_sees_positions_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(self: Any, *_: Any) -> int:
        return int(self.cache.positions[0, 0])

    monkeypatch.setattr(own_positions.CacheEnd, "get_seq_length", begun)
    why = fault(stock("llama4_text").config)
    assert why is not None and "other logits" in why
