"""Experts whose matrices stand one below the other in tall weights: like the stock layer, read as a checkpoint has them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save, stock
from understudy.models.mixtures import plain_experts, tall_experts
from understudy.models.mixtures.experts import stacks
from understudy.models.stock import structure
from understudy.models.streamed import attention_name
from understudy.weights.checkpoint import Checkpoint


def test_a_layer_gives_what_the_stock_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stock("dbrx")
    module: Any = next(m for m in model.modules() if type(m).__name__ == "DbrxExperts")
    weights = {name: p.detach().view(8, 64, 64) for name, p in module.mlp.named_parameters()}
    hidden, chosen, shares = torch.randn(1, 11, 64), torch.stack([torch.randperm(8)[:2] for _ in range(11)]), torch.rand(11, 2)
    expected = module(hidden, chosen, shares)

    def mix(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        both = torch.cat([weights["w1"], weights["v1"]], dim=1)
        made = torch.einsum("nh,nkih->nki", hidden, both[chosen])
        return torch.einsum("nki,nkih,nk->nh", module._apply_gate(made), weights["w2"][chosen], shares)

    monkeypatch.setattr(plain_experts, "mix", mix)
    tall_experts.install_tall_experts(model)
    assert torch.allclose(module(hidden, chosen, shares), expected, atol=1e-5)


def test_rows_are_those_of_the_tall_weights(tmp_path: Path) -> None:
    save(tmp_path, "dbrx", torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path)
    model = structure.skeleton(stock("dbrx").config, torch.bfloat16, attention_name())
    assert all(stack.parameter.is_meta for stack in stacks(model).values())
    up, down = (spec for spec in structure.layout(model, checkpoint.tensors).linears if ".1.ffn.experts." in spec.module)
    gates, gated, results = (checkpoint.read(name).view(8, 64, 64) for name in (*up.pieces, down.weight))
    assert up.in_turn and down.turned and not down.pieces
    assert torch.equal(checkpoint.weight_rows(up, 0, 1024), torch.cat([gates, gated], dim=1).view(-1, 64))
    assert torch.equal(checkpoint.weight_rows(down, 128, 192), results[2].T)
    told = structure.foretold(model, torch.bfloat16, tmp_path)
    foretold = [(spec.module, spec.shape, spec.experts, spec.chosen) for spec in structure.layout(model, told).linears]
    assert (up.module, (1024, 64), 8, 2) in foretold and (down.module, (512, 64), 8, 2) in foretold


def test_large_matrices_are_built_without_memory() -> None:
    """Those of a whole layer have gigabytes in the published model."""
    config = stock("dbrx").config
    config.ffn_config.ffn_hidden_size = 16384
    model = structure.skeleton(config, torch.bfloat16, "eager")
    assert {p.is_meta for name, p in model.named_parameters() if p.dim() > 1} == {True}
