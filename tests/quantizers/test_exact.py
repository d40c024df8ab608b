"""`exact` is the weight itself in blocks: nothing is lost, and cutting copies nothing."""

import pytest
import torch

from understudy.quantizers import quantizer

EXACT = quantizer("exact")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 33), (64, 7), (200, 64)])
def test_no_bit_is_lost(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).to(dtype)
    weight[0, 0] = float("inf")
    assert torch.equal(EXACT.dequantize(EXACT.quantize(weight), shape), weight.float())
    assert EXACT.applies(*shape) and not EXACT.grouped


def test_a_cut_is_a_view() -> None:
    made = EXACT.quantize(torch.randn(300, 16))
    part = EXACT.cut(made, 1, 2)["weight"]
    assert part.shape[0] == 2 and part.data_ptr() == made["weight"][1].data_ptr()


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("columns", [32, 33])
def test_products_have_the_inputs_type_whatever_the_weights_is(weights: torch.dtype, dtype: torch.dtype, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(100, columns, generator=generator).to(weights)
    x = torch.randn(3, columns, generator=generator).to(dtype)
    y = EXACT.linear(EXACT.quantize(weight), (100, columns), dtype)(x)
    assert y.dtype == dtype and y.shape == (3, 100)
    torch.testing.assert_close(y.float(), x.float() @ weight.float().T, rtol=0.02, atol=0.1)
