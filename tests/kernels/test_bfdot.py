"""Products in bfloat16: a row's bits depend neither on the rows beside it nor on how its columns are cut."""

from typing import Any

import numba
import pytest
import torch
from torch import Tensor

from understudy.kernels.bfdot import LAID, MOST, ahead, columns_dot, lay_columns, to_brain
from understudy.tiers.memory import arena


@numba.njit
def laid(source: int, target: int, pairs: int) -> None:
    for i in range(pairs):
        lay_columns(source + i * 256, target + i * 2 * LAID)


@numba.njit
def rounded(source: int, target: int) -> None:
    to_brain(source, target)


def adder(rows: int, as_they_are: bool = False) -> Any:
    inner = columns_dot(rows, laid=not as_they_are)

    @numba.njit
    def call(weights: int, columns: int, x: int, stride: int, sums: int) -> None:
        inner(weights, columns, x, stride, sums)

    return call


ADD = {rows: adder(rows) for rows in (1, 2, 4, MOST)}


def lines(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that begin at a whole page."""
    count = torch.Size(shape).numel()
    return arena(count * dtype.itemsize).zero_().view(dtype)[:count].view(*shape)


def sums_of(rows: int, weights: Tensor, x: Tensor, sums: Tensor) -> Tensor:
    """`sums` [rows, 64] with the products of x [rows, K] and weights [K, 64] added."""
    taken = lines(len(weights), LAID, dtype=torch.uint8)
    laid(weights.contiguous().data_ptr(), taken.data_ptr(), len(weights) // 2)
    out = lines(rows, 64, dtype=torch.float32).copy_(sums)
    ADD[rows](taken.data_ptr(), len(weights), x.data_ptr(), x.stride(0) * 2, out.data_ptr())
    return out


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """weights [142, 64], x [MOST, 142] whose rows lie further apart, sums [MOST, 64]"""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(142, 64, generator=generator).to(torch.bfloat16)
    x = torch.randn(MOST, 160, generator=generator).to(torch.bfloat16)[:, :142]
    return weights, x, torch.randn(MOST, 64, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 4, MOST])
def test_sums_are_those_of_arithmetic_and_of_each_row_alone(rows: int, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, x, sums = operands
    found = sums_of(rows, weights, x[:rows], sums[:rows])
    wanted = sums[:rows].double() + x[:rows].double() @ weights.double()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    for row in range(rows):
        assert torch.equal(found[row], sums_of(1, weights, x[row : row + 1], sums[row : row + 1])[0])


@pytest.mark.skipif(not ahead(), reason="this machine multiplies by pairs of columns")
@pytest.mark.parametrize("rows", [1, 2])
def test_weights_as_they_are_give_the_same_bits(rows: int, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, x, sums = operands
    out = lines(rows, 64, dtype=torch.float32).copy_(sums[:rows])
    adder(rows, as_they_are=True)(weights.data_ptr(), len(weights), x.data_ptr(), x.stride(0) * 2, out.data_ptr())
    assert torch.equal(out, sums_of(rows, weights, x[:rows], sums[:rows]))


@pytest.mark.parametrize("cut", [2, 16, 46, 130])
def test_columns_may_be_cut_anywhere_between_pairs(cut: int, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, x, sums = operands
    first = sums_of(MOST, weights[:cut], x[:, :cut], sums)
    assert torch.equal(sums_of(MOST, weights[cut:], x[:, cut:], first), sums_of(MOST, weights, x, sums))


def test_two_columns_lie_as_pairs_or_as_floats() -> None:
    columns = torch.randn(2, 64, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    found = lines(2, LAID, dtype=torch.uint8)
    laid(columns.data_ptr(), found.data_ptr(), 1)
    assert torch.equal(found.view(torch.float32), columns.float()) if ahead() else torch.equal(
        found.view(torch.bfloat16).view(64, 2), columns.T
    )


def test_floats_are_rounded_to_the_nearest_bfloat16() -> None:
    generator = torch.Generator().manual_seed(9)
    for scale in (1e-30, 1.0, 1e30):
        source = lines(64, dtype=torch.float32).copy_(torch.randn(64, generator=generator) * scale)
        # Halfway between two neighbours, the even one is taken.
        source[:4] = torch.tensor([1.00390625, 1.01171875, float("inf"), -0.0])
        target = lines(64, dtype=torch.bfloat16)
        rounded(source.data_ptr(), target.data_ptr())
        assert torch.equal(target.view(torch.int16), source.to(torch.bfloat16).view(torch.int16))
