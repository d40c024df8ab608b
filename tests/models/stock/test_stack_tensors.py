"""Matrices of experts in tensors of their own, all in one, or one stack for each half of a gate."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import publish
from understudy.errors import CheckpointError
from understudy.models.mixtures.experts import Stack
from understudy.models.stock import structure
from understudy.models.stock.configuration import config_of
from understudy.models.stock.stack_tensors import of_experts
from understudy.models.streamed import attention_name
from understudy.weights.checkpoint import Checkpoint

STACK = Stack(nn.Module(), "gate_up_proj", 4, 6, 2, False)


def test_those_of_each_expert_and_no_others() -> None:
    """Three rows of the six of an expert in each, with those of a further expert behind them."""
    tensors = {f"{expert}.{half}": torch.empty(3, 2) for expert in range(5) for half in ("gate", "up")}
    assert of_experts("mlp", STACK, tuple(tensors), tensors) == tuple(tensors)[:8]
    assert of_experts("mlp", STACK, ("one",), {"one": torch.empty(4, 6, 2)}) == ("one",)
    with pytest.raises(CheckpointError, match=r"of the 4 experts of 'mlp' some have no tensor such as '0\.gate'"):
        of_experts("mlp", STACK, tuple(tensors)[:7], tensors)


def test_rows_of_an_expert_come_from_both_stacks_in_turn(tmp_path: Path) -> None:
    publish(tmp_path, "step3p7", torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path)
    model = structure.skeleton(config_of(tmp_path), torch.bfloat16, attention_name())
    specs = {spec.module: spec for spec in structure.layout(model, checkpoint.tensors).linears}
    spec = specs["model.language_model.layers.1.mlp.experts.gate_up_proj"]
    gate, up = (checkpoint.read(name) for name in spec.pieces)
    assert spec.in_turn and [name.rpartition(".moe.")[2] for name in spec.pieces] == ["gate_proj.weight", "up_proj.weight"]
    assert gate.shape == spec.stored_shape == (8, 64, 64) and spec.shape == (8 * 128, 64) and spec.unit == 64
    whole = torch.cat([gate, up], dim=1).view(-1, 64)
    for start, stop in ((0, 1024), (0, 64), (64, 128), (5 * 128 + 64, 6 * 128), (100, 300)):
        assert torch.equal(checkpoint.weight_rows(spec, start, stop), whole[start:stop])
    (info, offset, count), *others = checkpoint.places(spec, 3 * 128 + 64, 4 * 128)
    assert info.name == spec.pieces[1] and offset == info.offset + 3 * 64 * 64 * 2 and count == 64 and not others
