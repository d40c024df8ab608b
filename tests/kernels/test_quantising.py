"""Codes are the nearest ones, of every number of bits, and lie where the layout says."""

import pytest
import torch

from understudy.kernels import hqq
from understudy.kernels.pack import block, unpack


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("group", [16, 48, 64])
def test_codes_are_the_nearest(bits: int, group: int) -> None:
    generator = torch.Generator().manual_seed(bits * group)
    weight = torch.randn((128, 2 * group), generator=generator) * 0.02
    weight[5] = 0.25
    weight[70] = 0
    codes, scales = hqq.solve(block(weight), group, bits)
    # [rows, groups, 1]
    scale, zero = (scales[..., i].float().T[..., None] for i in (0, 1))
    steps = torch.where(scale > 0, (weight.view(128, 2, group) - zero) * (1 / scale), 0.0)
    centre = 2 ** (bits - 1)
    nearest = steps.clamp(-centre, centre - 1).round() + centre
    assert torch.equal(unpack(codes, 128).view(128, 2, group).float(), nearest)
    assert len(unpack(codes, 128).unique()) == 2**bits, "all codes are used"
    assert (scale[5] == 0).all() and torch.equal(zero[5], torch.full_like(zero[5], 0.25))


def test_scales_and_zeros_are_bfloat16_numbers_rounded_to_the_nearest() -> None:
    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64) * 0.37
    _, scales = hqq.solve(block(weight), 64, 4, rounds=0)
    low, high = weight.amin(1), weight.amax(1)
    fifteenth = torch.tensor(1.0) / 15
    assert torch.equal(scales[0, :, 0], (high * fifteenth - low * fifteenth).bfloat16())
    assert torch.equal(scales[0, :, 1], (low * (torch.tensor(7.0) / 15) + high * (torch.tensor(8.0) / 15)).bfloat16())
