"""Numbers that kernels read and write: every bfloat16, and rounding to the nearest."""

import numba
import numpy as np
import pytest
import torch

from understudy.kernels.numbers import read, write


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
