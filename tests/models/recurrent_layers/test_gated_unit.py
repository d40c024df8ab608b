"""The real-gated linear recurrent unit: what its layers keep; what is wrong in it is seen by the proof."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import values_of
from understudy.kernels.recurrence import RuleStep
from understudy.models.kept import HELD, MOST_KEPT, may_be_kept
from understudy.models.proving.proof import fault
from understudy.models.proving.shrink import shrunk
from understudy.models.recurrent_layers.gated_unit import GatedUnit
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape


def config_of(**changes: Any) -> Any:
    return AutoConfig.for_model(**values_of("recurrent_gemma", **changes))


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    shape = ModelShape.of(config_of())
    kept = RecurrentShape(64, 4, 1, 64, 1, 1)
    assert [layer.recurrent for layer in shape.layers] == [kept, kept, None] and shape.changes_logits
    assert [(layer.kv_heads, layer.window) for layer in shape.layers] == [(0, 0), (0, 0), (2, 16)]


def test_a_small_copy_has_a_layer_of_each_kind() -> None:
    small = shrunk(config_of(num_hidden_layers=26))
    assert small.layers_block_type == ["linear_attention", "linear_attention", "sliding_attention"]


def test_small_matrices_of_gates_are_kept() -> None:
    stack = nn.Parameter(torch.empty(4, 16, 16, device="meta"))
    assert not may_be_kept(stack)
    setattr(stack, HELD, True)
    assert may_be_kept(stack)
    large = nn.Parameter(torch.empty(4, MOST_KEPT // 64, 64, device="meta"))
    setattr(large, HELD, True)
    assert not may_be_kept(large)


@pytest.mark.parametrize("wrong", ["decay", "gates", "start"])
def test_a_proof_sees_what_is_wrong_in_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recur, gates, forward = GatedUnit.recur, GatedUnit._gates, GatedUnit.forward
    if wrong == "decay":

        def otherwise(self: Any, step: RuleStep) -> Tensor:
            return recur(self, RuleStep(step.query, step.key, step.value, step.decay**1.1))

        monkeypatch.setattr(GatedUnit, "recur", otherwise)
    elif wrong == "gates":
        monkeypatch.setattr(GatedUnit, "_gates", lambda self, x: gates(self, x)[::-1])
    else:
        monkeypatch.setattr(GatedUnit, "forward", lambda self, x, position_ids, **k: forward(self, x, position_ids + 1, **k))
    assert "gives other logits" in str(fault(config_of()))
