"""Stock modules of experts hand their rows over and add up what comes back: as transformers does, and each row by itself."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from tests.tiny import COMMON, MIXTURES, wrapper
from tests.tiny import stock as whole
from understudy.errors import CheckpointError
from understudy.models.mixtures import experts as computed
from understudy.models.mixtures.experts import experts_name, hand_over, mix, mixes, stacks
from understudy.models.mixtures.routed import Rows, product
from understudy.models.proving.proof import fault
from understudy.models.stock import structure
from understudy.models.streamed import attention_name

EXPERTS, HIDDEN = 8, 64


def of_family(family: str, **changes: Any) -> Any:
    """The experts of one layer of a stock model, with values."""
    found: list[Any] = [module for module in whole(family, **changes).modules() if mixes(module)]
    assert found
    return found[-1]


class Products:
    """A pass under way that has the weights, and notes the rows it was given."""

    def __init__(self, weights: Sequence[Tensor], count: int) -> None:
        self.weights, self.count = weights, count
        self.expert_kernels = None
        self.rows: list[int] = []

    def linear(self, index: int, x: Rows) -> Tensor:
        assert not isinstance(x, Tensor)
        self.rows.append(len(x.rows))
        return product(x, self.weights[index])


def handed(module: Any, count: int, kind: type[Products] = Products) -> tuple[Any, Products]:
    """`module` without its weights, which the pass of `count` nodes has that it finds under way."""
    names = [name for name, _ in sorted(module.named_parameters(recurse=False), key=lambda named: named[0] == "down_proj")]
    under_way = kind([module._parameters[name].detach() for name in names], count)
    for index, name in enumerate(names):
        hand_over(module, SimpleNamespace(under_way=under_way), name, index)  # type: ignore[arg-type]
    return module, under_way


class RowByRow(Products):
    """Each row by itself, and each number: torch multiplies one row otherwise than several, and on three threads than on one."""

    def linear(self, index: int, x: Rows) -> Tensor:
        made = [(self.weights[index][e].double() * y.double()).sum(1) for y, e in zip(x.rows, x.experts, strict=True)]
        if not made:
            return super().linear(index, x)
        self.rows.append(len(made))
        return torch.stack(made).to(x.rows.dtype)


def choice(rows: int, chosen: int, experts: int = EXPERTS) -> tuple[Tensor, Tensor]:
    """To which experts each of some rows goes, and by how much."""
    scores = torch.rand(rows, experts)
    top = scores.topk(chosen)
    return top.indices, top.values


@pytest.mark.parametrize("family", ["qwen3_moe", "nemotron_h-experts", "phimoe", "gemma4-moe", "deepseek_v3"])
@pytest.mark.parametrize("experts", ["any", "one"])
def test_it_computes_what_transformers_computes(family: str, experts: str) -> None:
    """With padding behind the nodes, which goes nowhere; and where all nodes go to the same experts."""
    module = of_family(family)
    x = torch.randn(9, HIDDEN)
    indices, weights = choice(9, 2)
    if experts == "one":
        indices = torch.tensor([[5, 2]]).expand(9, 2)
    with torch.no_grad():
        wanted = module(x, indices, weights)
        assert wanted.std() > 0.1
        module, under_way = handed(module, 7)
        found = mix(module, x, indices, weights)
    assert torch.allclose(found[:7], wanted[:7], atol=1e-4, rtol=1e-4) and not found[7:].any()
    assert under_way.rows == [14, 14] and list(module.named_parameters(recurse=False)) == []


def test_a_number_that_no_expert_has_adds_nothing() -> None:
    module, under_way = handed(of_family("qwen3_moe"), 3, RowByRow)
    x, weights = torch.randn(3, HIDDEN), torch.ones(3, 2)
    with torch.no_grad():
        some = mix(module, x, torch.tensor([[1, EXPERTS], [EXPERTS, EXPERTS], [0, 1]]), weights)
        same = mix(module, x, torch.tensor([[1, 1], [2, 3], [0, 1]]), weights * torch.tensor([[1, 0], [0, 0], [1, 1]]))
        none = mix(module, x, torch.full((3, 2), EXPERTS), weights)
    assert torch.equal(some, same) and not some[1].any() and not none.any()
    assert under_way.rows == [3, 3, 6, 6, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company_and_on_any_threads(dtype: torch.dtype) -> None:
    """Also where a thread's share of all rows ends within a vector. An expert's inner size is large for that."""
    module, _ = handed(of_family("gemma4-moe", moe_intermediate_size=1408).to(dtype), 1, RowByRow)
    x = torch.randn(80, HIDDEN).to(dtype)
    indices, weights = choice(80, 4)
    alone = []
    products = module.understudy.under_way
    with torch.no_grad():
        for row in range(80):
            alone.append(mix(module, x[row : row + 1], indices[row : row + 1], weights[row : row + 1]))
        torch.set_num_threads(3)
        try:
            for count in (1, 33, 67, 79):
                products.count = count
                assert torch.equal(mix(module, x[:count], indices[:count], weights[:count]), torch.cat(alone[:count])), count
        finally:
            torch.set_num_threads(1)


def test_what_an_expert_gives_is_added_in_the_order_of_their_numbers() -> None:
    """In whatever order the router names them."""
    module, _ = handed(of_family("qwen3_moe").bfloat16(), 4)
    x = torch.randn(4, HIDDEN).bfloat16()
    indices, weights = choice(4, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        assert torch.equal(mix(module, x, indices, weights), mix(module, x, indices[:, order], weights[:, order]))


@pytest.mark.parametrize(("family", "first"), [("qwen3_moe", "gate_up_proj"), ("nemotron_h-experts", "up_proj")])
def test_stacks_are_found_in_the_order_of_use(family: str, first: str) -> None:
    options = {**COMMON, **MIXTURES[family]}
    config = AutoConfig.for_model(options.pop("model_type", family), **options)
    model = structure.skeleton(config, torch.bfloat16, attention_name())
    found = stacks(model)
    assert [name.rpartition(".")[2] for name in found] == [first, "down_proj"] * (len(found) // 2) and len(found) >= 4
    for stack in found.values():
        assert stack.parameter.is_meta and tuple(stack.parameter.shape) == (EXPERTS, stack.outputs, stack.inputs)
        assert stack.shape == (EXPERTS * stack.outputs, stack.inputs)
    assert experts_name() == "understudy"
    seen = structure.trace(model, structure.streamed_linears(model))
    assert [path for path in seen.order if path in found] == list(found) and set(seen.chosen.values()) == {2}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"has_bias": True}, "keeps down_proj, gate_up_proj"),
        ({"has_post_expert_norm": True}, "has a norm behind each that is not found"),
        ({"has_gate": False}, "keeps down_proj, gate_up_proj"),
    ],
)
def test_experts_that_compute_otherwise_are_refused(change: dict[str, bool], why: str) -> None:
    model = whole("qwen3_moe")
    module = next(module for module in model.modules() if mixes(module))
    for name, value in change.items():
        setattr(module, name, value)
    with pytest.raises(CheckpointError, match=f"experts in a way that is not supported yet: it {why}"):
        stacks(model)


def test_a_norm_behind_each_expert_sees_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has the same bits among any others; and a proof sees where it is left out."""
    rows = torch.randn(77, 128).bfloat16()
    whole_model = whole("muse_spark")
    norm = whole_model.model.language_model.layers[1].mlp.experts
    every = computed._normed(norm, rows)
    assert torch.allclose(every.float().pow(2).mean(-1), torch.ones(77), atol=0.05) and len(computed._normed(norm, rows[:0])) == 0
    for count in (1, 5, 32, 40):
        assert torch.equal(computed._normed(norm, rows[-count:]), every[-count:])
    monkeypatch.setattr(computed, "_normed", lambda module, out: out)
    assert "gives other logits" in str(fault(wrapper("muse_spark")))
