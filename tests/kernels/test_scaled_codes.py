"""Codes and zero points are told from weights and their scales, and stand for the same bits; what has none is told too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import scaled_codes
from understudy.kernels.eighths_coding import Factors
from understudy.kernels.pack import block
from understudy.kernels.scaled_codes import EVEN, WIDEST, tile_of
from understudy.kernels.scaled_fours import CENTRE


def weights(
    rows: int, columns: int, sharing: int, *, dtype: torch.dtype = torch.bfloat16, points: str = "centre", seed: int = 0,
    spread: int = 9,
) -> tuple[Tensor, Factors]:  # fmt: skip
    """Blocks of codes less their zero points, times scales of 2 ** -`spread` to 2 ** `spread`, either sign; and those scales."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows, columns // sharing
    codes = torch.randint(0, 16, (*shape, sharing), generator=generator)
    zeros = torch.full(shape, CENTRE) if points == "centre" else torch.randint(0, 17, shape, generator=generator)
    scales = torch.exp2(torch.randint(-spread, spread + 1, shape, generator=generator))
    scales = scales * (1 + torch.rand(shape, generator=generator))
    scales = (scales * torch.randint(0, 2, shape, generator=generator).mul(2).sub(1)).to(dtype).float()
    made = ((codes - zeros[..., None]).float() * scales[..., None]).view(rows, columns).to(dtype)
    return block(made), Factors.of_rows(scales, sharing)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(64, 32, 32), (70, 96, 32), (3, 128, 128), (130, 256, 64), (64, 384, 384)]),
    st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from(["centre", "any"]),
)  # fmt: skip
def test_weights_come_back(seed: int, sizes: tuple[int, int, int], dtype: torch.dtype, points: str) -> None:
    blocks, factors = weights(*sizes, dtype=dtype, points=points, seed=seed, spread=9 if dtype == torch.float16 else 60)
    made = scaled_codes.encode(blocks, factors)
    assert made is not None and made.scales.dtype == dtype and made.columns == sizes[2]
    assert points == "any" or made.zeros is None
    out = torch.empty_like(blocks)
    scaled_codes.decode(made, out)
    assert torch.equal(bits(out), bits(blocks))


def test_scales_that_the_weights_type_does_not_hold_stay_in_float32() -> None:
    scales = torch.full((64, 2), 1 / 3)
    blocks = block((scales.repeat_interleave(32, 1) * 5).bfloat16())
    made = scaled_codes.encode(blocks, Factors.of_rows(scales, 32))
    assert made is not None and made.scales.dtype == torch.float32
    out = torch.empty_like(blocks)
    scaled_codes.decode(made, out)
    assert torch.equal(bits(out), bits(blocks))


def test_weights_that_were_float16_before() -> None:
    """As GPTQ's are in bfloat16: rounded twice, some to other numbers than once."""
    generator = torch.Generator().manual_seed(0)
    scales = (torch.rand(64, 2, generator=generator) * 0.01 + 1e-5).half().float()
    numbers = torch.randint(-8, 8, (64, 64), generator=generator) * scales.repeat_interleave(32, 1)
    twice = numbers.half().bfloat16()
    assert not torch.equal(twice, numbers.bfloat16())
    made = scaled_codes.encode(block(twice), Factors.of_rows(scales, 32))
    assert made is not None and made.halved
    out = torch.empty_like(block(twice))
    scaled_codes.decode(made, out)
    assert torch.equal(bits(out), bits(block(twice)))
    # of other scales small products would be finer than float16
    scales = scales + 1e-6
    twice = (torch.randint(-8, 8, (64, 64), generator=generator) * scales.repeat_interleave(32, 1)).half().bfloat16()
    assert scaled_codes.encode(block(twice), Factors.of_rows(scales, 32)) is None


def test_one_scale_for_all_rows_is_that_of_each() -> None:
    blocks = block(torch.randint(-8, 8, (128, 64)).bfloat16() / 4)
    made = scaled_codes.encode(blocks, Factors(torch.full((2, 1, 1), 0.25), 1 << 20))
    assert made is not None and made.scales.shape == (2, 1, 64) and made.columns == 64


@pytest.mark.parametrize("spoilt", [0.3, 16.0, -0.0, float("nan"), float("inf"), 1e-40, 3e38], ids=lambda value: f"{value:.3g}")
def test_what_is_no_code_is_told(spoilt: float) -> None:
    blocks, factors = weights(64, 64, 32, seed=5)
    assert scaled_codes.encode(blocks, factors) is not None
    own = factors.values[0, 1, 17]
    blocks[0, 40, 17] = spoilt * own.abs() if spoilt in (0.3, 16.0) else -0.0 * own.sign() if spoilt == 0 else spoilt
    assert scaled_codes.encode(blocks, factors) is None


@pytest.mark.parametrize("scale", [2.0**-81, 2.0**-140, 2.0**81, 0.0])
def test_scales_that_processors_would_treat_unlike_are_none(scale: float) -> None:
    factors = Factors(torch.full((1, 2, 64), 0.5), 32)
    blocks = block(torch.full((64, 64), 1.5).bfloat16())
    assert scaled_codes.encode(blocks, factors) is not None
    factors.values[0, 1, 3] = scale
    assert scaled_codes.encode(blocks, factors) is None


def test_tiles_are_whole_shares_of_what_has_one_scale() -> None:
    assert [tile_of(*sizes) for sizes in ((64, 32), (4096, 4096), (576, 576), (96, 24))] == [32, 128, 96, 24]
    assert [tile_of(*sizes) for sizes in ((96, 64), (64, 4), (74, 74))] == [0, 0, 0]
    for sharing in range(1, 600):
        tile = tile_of(sharing, sharing)
        assert tile == 0 or (sharing % tile == 0 and tile % EVEN == 0 and tile <= WIDEST)
