"""Whole rows finished on a GPU: in place, whatever their width; `test_draft_product` has them after products."""

import pytest
import torch

from tests.device import DEVICE
from understudy.kernels.join_form import JoinForm, Norm

pytest.importorskip("triton")
from understudy.kernels.gpu.finished_rows import finish_rows


@pytest.mark.parametrize("columns", [16, 100, 1152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_scaled_normed_and_added_to(columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(columns)
    y, added, weight = torch.randn(3, columns).to(dtype), torch.randn(3, columns).to(dtype), torch.rand(columns) + 0.5
    wanted = 2 * y.float()
    wanted = wanted * (wanted.square().mean(1, keepdim=True) + 1e-2).rsqrt() * weight + added.float()
    wanted *= 0.75
    ours = y.to(DEVICE, copy=True)
    finish_rows(ours, added.to(DEVICE), JoinForm(times=2.0, after=Norm(weight.to(DEVICE), 1e-2), scale=0.75))
    near = 1e-6 if dtype == torch.float32 else 1e-2
    assert ((ours.cpu().float() - wanted).norm() / wanted.norm()) < near
