"""The copies of experts multiply each routed row by the copy of its own expert, whatever they are made of."""

import pytest
import torch

from understudy.devices.processor import Processor
from understudy.models.mixtures.expert_copies import expert_copies
from understudy.models.mixtures.routed import Routed
from understudy.quantizers import quantizer

EXPERTS, ROWS, COLUMNS = 4, 128, 192


@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int4:group=32", "int6", "int8", "exact"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_row_is_multiplied_by_the_copy_of_its_expert(spec: str, dtype: torch.dtype) -> None:
    maker, shape = quantizer(spec), (EXPERTS * ROWS, COLUMNS)
    made = maker.quantize((torch.randn(shape) * 0.1).to(dtype))
    multiply = expert_copies(maker, made, shape, EXPERTS, dtype, Processor(threads=1))
    routed = Routed(torch.randn(6, COLUMNS).to(dtype), torch.tensor([0, 0, 2, 3, 3, 3]))
    found = multiply(routed)
    assert found.shape == (6, ROWS) and found.dtype == dtype
    whole = maker.dequantize(made, shape).view(EXPERTS, ROWS, COLUMNS)
    wanted = torch.stack([whole[expert] @ row.float() for row, expert in zip(routed.rows, routed.experts, strict=True)])
    assert (found.float() - wanted).norm() / wanted.norm() < 0.02
    assert multiply(Routed(routed.rows[:0], routed.experts[:0])).shape == (0, ROWS)
    alone = [multiply(Routed(routed.rows[i : i + 1], routed.experts[i : i + 1])) for i in range(6)]
    assert spec == "exact" or torch.equal(torch.cat(alone), found)
