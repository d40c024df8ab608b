"""Experts whose inputs are scaled: like the stock layer, and the proof sees where they are not."""

from typing import Any

import pytest
import torch

from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models.mixtures.experts import stacks
from understudy.models.mixtures.scaled_experts import GatedExperts, ScaledExperts, install_scaled_experts
from understudy.models.proving.proof import fault
from understudy.models.stock import structure
from understudy.models.streamed import attention_name


def test_a_layer_gives_what_the_stock_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = next(m for m in stock("llama4_text").modules() if type(m).__name__ == "Llama4TextMoe")
    x = torch.randn(2, 11, 64)
    expected, logits = module(x)

    def each(self: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        both = torch.einsum("nh,nhi->ni", hidden, self.gate_up_proj[chosen[:, 0]])
        return torch.einsum("ni,nih->nh", self._apply_gate(both), self.down_proj[chosen[:, 0]]) * weights

    monkeypatch.setattr(GatedExperts, "forward", each)
    found, same = ScaledExperts(module)(x)
    assert torch.allclose(found, expected, atol=1e-5) and torch.equal(same, logits)


def test_its_matrices_stand_as_a_checkpoint_has_them() -> None:
    found = stacks(structure.skeleton(stock("llama4_text").config, torch.float32, attention_name()))
    assert [(stack.shape, stack.turned) for stack in found.values()] == [((8 * 128, 64), True), ((8 * 64, 64), True)] * 3
    assert all(stack.parameter.is_meta for stack in found.values())


def test_several_experts_for_a_token_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"to 2 of them \(num_experts_per_tok\); only 1 is supported"):
        install_scaled_experts(stock("llama4_text", num_experts_per_tok=2))


def test_the_proof_sees_scores_that_multiply_what_experts_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def behind(self: Any, hidden_states: torch.Tensor) -> Any:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = self.router(flat)
        chosen = torch.topk(logits, 1, dim=1).indices
        return self.shared_expert(flat) + self.experts(flat, chosen, scores.gather(1, chosen)), logits

    monkeypatch.setattr(ScaledExperts, "forward", behind)
    assert fault(stock("llama4_text").config) is not None
