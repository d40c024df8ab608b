"""Stacks that are multiplied by one at a time: networks and attention of experts, like the stock ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import stock
from understudy.models.mixtures import lone_stacks
from understudy.models.mixtures.experts import mixes, stacks
from understudy.models.stock import own_attention, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name


def plainly(stack: Any, rows: Tensor, chosen: Tensor) -> Tensor:
    return torch.einsum("nkh,nkoh->nko", rows, stack.weight[chosen])


def test_a_network_gives_what_the_stock_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = stock("jetmoe"), torch.randn(1, 11, 64)
    network: Any = next(module for module in model.modules() if type(module).__name__ == "JetMoeMoE")
    expected = network(x)
    monkeypatch.setattr(lone_stacks, "multiplied", plainly)
    lone_stacks.install_lone_stacks(model)
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_attention_of_experts_keeps_the_heads_of_keys_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = stock("jetmoe"), torch.randn(1, 11, 64)
    attention: Any = next(module for module in model.modules() if type(module).__name__ == "JetMoeAttention")
    turns = model.model.rotary_emb(x, torch.arange(11)[None])
    mask = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    expected = attention(x, attention_mask=mask, position_embeddings=turns)[0]

    def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        assert query.shape == (1, 8, 11, 16) and key.shape == value.shape == (1, 4, 11, 16)
        every = [each.repeat_interleave(2, dim=1) for each in (key, value)]
        return torch.nn.functional.scaled_dot_product_attention(query, *every, mask, scale=scaling).transpose(1, 2)

    monkeypatch.setattr(own_attention, "multiplied", plainly)
    found, *_ = own_attention._jetmoe(attention, attend, x, position_embeddings=turns)
    assert torch.allclose(found, expected, atol=1e-5)
    assert [layer.kv_heads for layer in ModelShape.of(model.config).layers] == [4, 4, 4]


def test_each_stack_is_used_by_itself_in_its_turn() -> None:
    model = structure.skeleton(stock("jetmoe").config, torch.float32, attention_name())
    found = stacks(model)
    assert len(found) == 4 * 3 and all(stack.parameter.is_meta and mixes(stack.module) for stack in found.values())
    seen = structure.trace(model, structure.streamed_linears(model))
    attention = ("experts.input_linear.weight", "kv_proj", "experts.output_linear.weight")
    wanted = [*(f"self_attention.{name}" for name in attention), "mlp.input_linear.weight", "mlp.output_linear.weight"]
    assert seen.order[:5] == [f"model.layers.0.{name}" for name in wanted] and set(seen.chosen.values()) == {2}
