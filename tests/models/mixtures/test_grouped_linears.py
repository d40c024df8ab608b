"""A Linear whose inputs come in groups multiplies each by its own matrix, as the stock one does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import stock
from understudy.models.mixtures import grouped_linears
from understudy.models.mixtures.experts import mixes, stacks
from understudy.models.stock import structure
from understudy.models.streamed import attention_name


def plainly(stack: Any, rows: Tensor, chosen: Tensor) -> Tensor:
    return torch.einsum("nkh,nkoh->nko", rows, stack.weight[chosen])


@pytest.mark.parametrize("biased", [False, True])
def test_groups_are_multiplied_as_in_the_stock_module(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_linears, "multiplied", plainly)
    own: Any = stock("deepseek_v4").model.layers[0].self_attn.o_a_proj
    x = torch.randn(1, 5, 2, 64)
    with torch.no_grad():
        expected = own(x)
        if biased:
            own.bias = nn.Parameter(torch.randn(128), requires_grad=False)
            expected = expected + own.bias.view(2, 64)
        grouped_linears.install_grouped_linears(nn.Sequential(own))
        assert torch.allclose(own(x), expected, atol=1e-5)


def test_each_is_a_stack_of_as_many_matrices_as_groups_all_of_which_a_token_goes_to() -> None:
    model = structure.skeleton(stock("deepseek_v4").config, torch.float32, attention_name())
    found = {path: stack for path, stack in stacks(model).items() if "o_a_proj" in path}
    assert [(stack.experts, stack.outputs, stack.inputs) for stack in found.values()] == [(2, 64, 64)] * 4
    assert all(stack.parameter.is_meta and mixes(stack.module) for stack in found.values())
    seen = structure.trace(model, structure.streamed_linears(model))
    assert {seen.chosen[path] for path in found} == {2}
    first = seen.order.index("model.layers.0.self_attn.o_a_proj.weight")
    assert seen.order[first + 1] == "model.layers.0.self_attn.o_b_proj"


def test_usual_linears_stay_as_they_are() -> None:
    usual = nn.Linear(4, 4)
    usual.n_groups = 2  # type: ignore[assignment]
    grouped_linears.install_grouped_linears(nn.Sequential(usual))
    assert not mixes(usual) and usual.weight.dim() == 2
