"""Products in bfloat16: a row's bits depend neither on the rows beside it nor on how its columns are cut."""

from typing import Any

import numba
import pytest
import torch
from torch import Tensor

from understudy.kernels.bfdot import columns_dot, pair_columns, to_brain
from understudy.tiers.memory import arena


@numba.njit
def paired(source: int, target: int, pairs: int) -> None:
    for i in range(pairs):
        pair_columns(source + i * 256, target + i * 256)


@numba.njit
def rounded(source: int, target: int) -> None:
    to_brain(source, target)


def adder(rows: int) -> Any:
    inner = columns_dot(rows)

    @numba.njit
    def call(weights: int, columns: int, x: int, stride: int, sums: int) -> None:
        inner(weights, columns, x, stride, sums)

    return call


ADD = {rows: adder(rows) for rows in (1, 2, 4)}


def lines(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that begin at a whole page."""
    count = torch.Size(shape).numel()
    return arena(count * dtype.itemsize).zero_().view(dtype)[:count].view(*shape)


def sums_of(rows: int, weights: Tensor, x: Tensor, sums: Tensor) -> Tensor:
    """`sums` [rows, 64] with the products of x [rows, K] and weights [K, 64] added."""
    pairs = lines(*weights.shape, dtype=torch.bfloat16)
    paired(weights.contiguous().data_ptr(), pairs.data_ptr(), len(weights) // 2)
    out = lines(rows, 64, dtype=torch.float32).copy_(sums)
    ADD[rows](pairs.data_ptr(), len(weights), x.data_ptr(), x.stride(0) * 2, out.data_ptr())
    return out


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """weights [48, 64], x [4, 48] whose rows lie further apart, sums [4, 64]"""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(48, 64, generator=generator).to(torch.bfloat16)
    x = torch.randn(4, 60, generator=generator).to(torch.bfloat16)[:, :48]
    return weights, x, torch.randn(4, 64, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_sums_are_those_of_arithmetic_and_of_each_row_alone(rows: int, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, x, sums = operands
    found = sums_of(rows, weights, x[:rows], sums[:rows])
    wanted = sums[:rows].double() + x[:rows].double() @ weights.double()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    for row in range(rows):
        assert torch.equal(found[row], sums_of(1, weights, x[row : row + 1], sums[row : row + 1])[0])


@pytest.mark.parametrize("cut", [2, 16, 46])
def test_columns_may_be_cut_anywhere_between_pairs(cut: int, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, x, sums = operands
    first = sums_of(4, weights[:cut], x[:, :cut], sums)
    assert torch.equal(sums_of(4, weights[cut:], x[:, cut:], first), sums_of(4, weights, x, sums))


def test_two_columns_lie_as_pairs() -> None:
    columns = torch.arange(128, dtype=torch.int16).view(2, 64)
    pairs = lines(64, 2, dtype=torch.int16)
    paired(columns.data_ptr(), pairs.data_ptr(), 1)
    assert torch.equal(pairs, columns.T)


def test_floats_are_rounded_to_the_nearest_bfloat16() -> None:
    generator = torch.Generator().manual_seed(9)
    for scale in (1e-30, 1.0, 1e30):
        source = lines(64, dtype=torch.float32).copy_(torch.randn(64, generator=generator) * scale)
        # Halfway between two neighbours, the even one is taken.
        source[:4] = torch.tensor([1.00390625, 1.01171875, float("inf"), -0.0])
        target = lines(64, dtype=torch.bfloat16)
        rounded(source.data_ptr(), target.data_ptr())
        assert torch.equal(target.view(torch.int16), source.to(torch.bfloat16).view(torch.int16))
