"""The GPU's product with a weight of few bits against float64, for every number of rows, group and dtype that drafts have."""

import pytest
import torch

from tests.device import DEVICE
from understudy.quantizers import quantizer

pytest.importorskip("triton")
from understudy.kernels.gpu import draft_product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "group", "rows"),
    [
        ((64, 32), 32, 1),
        ((130, 192), 64, 5),
        ((300, 512), 128, 16),
        ((64, 256), 256, 33),
        ((96, 96), 32, 64),
        ((70, 64), 64, 70),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_the_product(bits: int, shape: tuple[int, int], group: int, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    groups = f":group={group if bits == 4 else group // 2}" if bits < 8 else ""
    maker = quantizer(f"int{bits}{groups}")
    tensors = maker.quantize(torch.randn(shape) * 0.05 + 0.01)
    x = torch.randn(rows, shape[1]).to(dtype)
    exact = x.double() @ maker.dequantize(tensors, shape).double().T
    multiply = draft_product.GroupedProduct(tensors["codes"].to(DEVICE), tensors["scales"].to(DEVICE), shape[0])
    found = multiply(x.to(DEVICE))
    assert found.dtype == dtype and found.shape == (rows, shape[0])
    error = (found.cpu().double() - exact).norm() / exact.norm()
    assert error < (3e-3 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("spec", ["int3", "int4", "int8"])
def test_the_columns_are_shared_out_and_none_is_counted_twice(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_product, "PROGRAMS", 3)
    torch.manual_seed(0)
    maker = quantizer(spec)
    tensors = maker.quantize(torch.randn(64, 448))  # seven steps in three shares: the last one is short
    multiply = draft_product.GroupedProduct(tensors["codes"].to(DEVICE), tensors["scales"].to(DEVICE), 64)
    assert multiply.splits == 3 and multiply.each == 3
    x = torch.randn(2, 448)
    exact = x.double() @ maker.dequantize(tensors, (64, 448)).double().T
    assert torch.allclose(multiply(x.to(DEVICE)).cpu().double(), exact, atol=1e-4)
