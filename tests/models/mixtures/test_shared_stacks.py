"""Shared experts in stacks are computed as other experts are, by weights of the router's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import values_of
from understudy.models.mixtures import shared_stacks
from understudy.models.mixtures.experts import mixes, stacked, stacks
from understudy.models.proving import proof


class Shared(nn.Module):
    """Of the published form."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Parameter(torch.randn(2, 6, 4)) for _ in range(2))
        self.down_proj = nn.Parameter(torch.randn(2, 4, 6))
        self.act_fn = nn.functional.silu

    def forward(self, hidden_states: Tensor, gammas: Tensor) -> Tensor:
        raise NotImplementedError


class Other(Shared):
    """Is given something else."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        raise NotImplementedError


def test_they_are_told_from_how_they_are_built() -> None:
    model = nn.Sequential(Shared(), Other())
    shared_stacks.install_shared_stacks(model)
    assert [mixes(module) for module in model] == [True, False]
    assert list(stacks(model)) == ["0.gate_proj", "0.up_proj", "0.down_proj"] and len(stacked(model[0])) == 3


@pytest.mark.parametrize("wrong", ["weights", "experts"])
def test_a_proof_sees_what_is_wrong_with_them(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, mix = AutoConfig.for_model(**values_of("inkling_text")), shared_stacks.mix

    def otherwise(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        given = (chosen, weights.flip(1)) if wrong == "weights" else (chosen.clamp(max=0), weights)
        return mix(module, hidden, *given)

    monkeypatch.setattr(shared_stacks, "mix", otherwise)
    assert "gives other logits" in str(proof.fault(config))
