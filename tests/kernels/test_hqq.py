"""The solver beats rounding to nearest, and whatever it is given, scale and zero are finite and codes are codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels import hqq
from understudy.kernels.pack import block
from understudy.quantizers import quantizer


def _error(weight: torch.Tensor, bits: int, rounds: int) -> float:
    codes, scales = hqq.solve(block(weight), 64, bits, rounds)
    made = quantizer(f"int{bits}").dequantize({"codes": codes, "scales": scales}, tuple(weight.shape))
    return ((made - weight).norm() / weight.norm()).item()


@pytest.mark.parametrize(
    ("freedom", "best"), [(0.0, (0.335, 0.172, 0.085)), (4.0, (0.44, 0.235, 0.115)), (2.5, (0.5, 0.27, 0.135))]
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_than_rounding_to_nearest(bits: int, freedom: float, best: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(freedom).sample((256, 512)) if freedom else torch.randn(256, 512)
    solved = _error(weight * 0.02, bits, hqq.ROUNDS)
    assert solved < best[bits - 2]
    assert solved < 0.95 * _error(weight * 0.02, bits, 0)


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1e-45, 1e-38, 1e-20, 1.0, 1e20, 3e38]), st.sampled_from([2, 3, 4]))
def test_any_bits(seed: int, size: float, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = (
        torch.randint(-(2**15), 2**15, (64, 64), generator=generator, dtype=torch.int16).view(torch.bfloat16).float()
    )
    for weight in (words, torch.randn(64, 64, generator=generator) * size, torch.full((64, 64), size)):
        scales = quantizer(f"int{bits}:group=32").quantize(weight)["scales"]
        assert torch.isfinite(scales).all() and (scales[..., 0] >= 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_constant_groups_are_exact(bits: int) -> None:
    weight = torch.full((64, 64), 0.3125)
    codes, scales = hqq.solve(block(weight), 64, bits)
    made = quantizer(f"int{bits}").dequantize({"codes": codes, "scales": scales}, (64, 64))
    assert torch.equal(made, weight)
