"""A stock model that does not attend as it was asked to is refused by name, whatever it computes instead."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models.stock import structure
from understudy.models.streamed import attention, attention_name

Forward = Callable[..., tuple[Tensor, Any]]
STOCK: Forward = modeling_llama.LlamaAttention.forward


def refusal(family: str = "llama", **changes: Any) -> str:
    """What is said of a model; its stock attention may be another one by now."""
    model = structure.skeleton(stock(family).config, torch.float32, attention_name())
    for module in model.modules():
        for name, value in changes.items():
            if hasattr(module, "layer_idx"):
                setattr(module, name, value)
    with pytest.raises(CheckpointError) as refused:
        structure.check_structure(model)
    assert "\n" not in str(refused.value)
    assert not any(hasattr(module, "watch") for module in model.modules()), "what watches is taken away"
    return str(refused.value)


def by_products(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Attention as old classes write it out."""
    q, k, v = (p(hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj))
    weights = nn.functional.softmax(q[..., :32] @ k.transpose(1, 2), dim=-1)
    return self.o_proj((weights @ v).repeat(1, 1, 2)), None


def by_torch(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    q, k, v = (p(hidden_states)[None] for p in (self.q_proj, self.k_proj, self.v_proj))
    return self.o_proj(nn.functional.scaled_dot_product_attention(q[..., :32], k, v)[0].repeat(1, 1, 2)), None


def in_the_last_layer(self: Any, hidden_states: Tensor, **given: Any) -> tuple[Tensor, Any]:
    return (by_torch if self.layer_idx == 2 else STOCK)(self, hidden_states, **given)


def twice(self: Any, hidden_states: Tensor, **given: Any) -> tuple[Tensor, Any]:
    q = self.q_proj(hidden_states).view(1, -1, 4, 16).transpose(1, 2)
    k, v = (p(hidden_states).view(1, -1, 2, 16).transpose(1, 2) for p in (self.k_proj, self.v_proj))
    return self.o_proj(sum(attention(self, q, k, v)[0] for _ in range(2)).flatten(2)), None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (by_products, r"LlamaForCausalLM computes attention by itself \(softmax\)"),
        (by_torch, r"LlamaForCausalLM computes attention by itself \(scaled_dot_product_attention\)"),
        (in_the_last_layer, "computes attention by itself"),
        (twice, "computes attention more than once in a layer"),
    ],
)
def test_a_layer_that_computes_attention_by_itself_is_refused(
    forward: Forward, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    assert re.search(words, refusal())


def test_a_gate_by_softmax_is_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(self: Any, hidden_states: Tensor, **given: Any) -> tuple[Tensor, Any]:
        states, weights = STOCK(self, hidden_states, **given)
        return states * hidden_states[..., :7].softmax(-1).sum(-1, keepdim=True), weights

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", gated)
    structure.check_structure(structure.skeleton(stock("llama").config, torch.float32, attention_name()))


def test_an_encoder_is_refused() -> None:
    assert "reads text in both directions" in refusal(is_causal=False)


def test_other_heads_than_the_config_tells_of_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wider(self: Any, hidden_states: Tensor, **given: Any) -> tuple[Tensor, Any]:
        q, k = (torch.zeros(1, heads, 29, 16, device="meta") for heads in (4, 4))
        return attention(self, q, k, k)[0].flatten(2), None

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", wider)
    assert "Layer 0 of LlamaForCausalLM has 4 heads of keys, of 16 and 16 numbers, where its config tells of 2" in refusal()


def test_a_layer_that_the_config_does_not_tell_of_is_named() -> None:
    assert "attends in layer 9, where its config tells of 3 layers" in refusal(layer_idx=9)
