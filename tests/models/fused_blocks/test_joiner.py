"""Norms and gates are known by what they do; what is made of them, `test_fused` has."""

import torch
from torch import nn

from understudy.kernels.blocks import ProcessorBlocks
from understudy.kernels.join_form import GateKind
from understudy.models.fused_blocks.block_structure import MlpModules
from understudy.models.fused_blocks.joiner import Joiner, gate_of, norm_of


def test_a_norm_is_known_by_what_it_does() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(16)), 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)

    norm = Shifted()
    found = norm_of(norm)
    assert found is not None and found.epsilon == 0.5
    assert torch.allclose(found.weight, 1 + norm.weight, atol=1e-6)
    assert norm_of(nn.Identity()) is None and norm_of(None) is None


def test_a_gate_is_known_by_what_it_does() -> None:
    assert gate_of(nn.SiLU()) is GateKind.SILU and gate_of(nn.GELU()) is GateKind.GELU
    assert gate_of(nn.GELU(approximate="tanh")) is GateKind.GELU and gate_of(nn.ReLU()) is None
    assert gate_of(None) is GateKind.SILU


def test_linears_that_no_copy_was_made_of_are_not_joined() -> None:
    joiner = Joiner({}, ProcessorBlocks())
    assert joiner([nn.Linear(2, 2)]) is None
    assert joiner.mlp(MlpModules((nn.Linear(2, 2),), nn.Linear(2, 2), None)) is None
    assert joiner.mlp(None) is None
