"""Numbers that kernels read and write: every bfloat16, rounding to the nearest, and int8 in groups."""

import numba
import numpy as np
import pytest
import torch

from understudy.kernels.numbers import read, to_int8, write


@numba.njit
def there_and_back(source: int, target: int, count: int, itemsize: int) -> None:
    room = np.empty(count, np.float32)
    read(source, itemsize, room)
    write(room, target, itemsize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_read_is_written_back(dtype: torch.dtype) -> None:
    numbers = torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(torch.bfloat16).to(dtype)
    numbers = numbers[numbers.isfinite()]
    out = torch.empty_like(numbers)
    there_and_back(numbers.data_ptr(), out.data_ptr(), len(numbers), dtype.itemsize)
    assert torch.equal(out, numbers)


def test_floats_are_rounded_to_the_nearest_bfloat16() -> None:
    @numba.njit
    def rounded(numbers: np.ndarray, target: int) -> None:
        write(numbers, target, 2)

    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    # halfway between two neighbours, the even one is taken
    numbers[:2] = torch.tensor([1.00390625, 1.01171875])
    out = torch.empty(1000, dtype=torch.bfloat16)
    rounded(numbers.numpy(), out.data_ptr())
    assert torch.equal(out, numbers.to(torch.bfloat16))


def test_codes_times_their_step_are_the_numbers() -> None:
    @numba.njit
    def call(words: np.ndarray, codes: np.ndarray, steps: np.ndarray) -> None:
        to_int8(words, 0, codes, steps)

    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
    codes, steps = np.empty((3, 96), np.int8), np.empty((3, 3, 2), np.float32)
    call(x.view(torch.int32).numpy().view(np.uint32), codes, steps)
    step = torch.from_numpy(steps[:, :, 0]).T.repeat_interleave(32, 1)
    assert ((torch.from_numpy(codes) * step - x).abs() <= step * 0.5001).all()
    sums = torch.from_numpy(codes).view(3, 3, 32).sum(2)
    assert torch.allclose(torch.from_numpy(steps[:, :, 1]).T, sums * torch.from_numpy(steps[:, :, 0]).T)
