"""Rows rounded to int8 in groups: against the same arithmetic in numpy, bit by bit."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.kernels.int8_rows import to_int8


@numba.njit
def call(source: int, itemsize: int, codes: np.ndarray, steps: np.ndarray) -> None:
    to_int8(source, itemsize, codes, steps)


def rounded(x: Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [groups, rows, width] and steps [groups, rows, 2] of x [rows, columns]."""
    rows, columns = x.shape
    codes, steps = np.full((columns // width, rows, width), 99, np.int8), np.zeros((columns // width, rows, 2), np.float32)
    call(x.data_ptr(), x.itemsize, codes, steps)
    return codes, steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e30, 0.0])
def test_codes_and_steps_are_those_of_the_same_arithmetic_in_numpy(dtype: torch.dtype, width: int, scale: float) -> None:
    x = (torch.randn(5, 3 * width, generator=torch.Generator().manual_seed(2)) * scale).to(dtype)
    codes, steps = rounded(x, width)
    groups = x.float().numpy().reshape(5, 3, width).swapaxes(0, 1)
    step = np.maximum(np.abs(groups).max(2) * np.float32(1 / 127), np.float32(1e-30))
    inverse = np.float32(1) / step
    wanted = np.rint(groups * inverse[:, :, None]).astype(np.int32)
    assert np.array_equal(codes, wanted)
    assert scale == 0 or abs(wanted).max() == 127 or scale < 1e-30
    assert np.array_equal(steps[:, :, 0], step)
    assert np.array_equal(steps[:, :, 1], step * wanted.sum(2).astype(np.float32))


def test_what_is_no_number_makes_the_step_of_its_group_none() -> None:
    x = torch.ones(2, 64)
    x[1, 40] = torch.nan
    _, steps = rounded(x, 32)
    assert np.isnan(steps[1, 1]).all() and not np.isnan(steps[0]).any() and not np.isnan(steps[1, 0]).any()
