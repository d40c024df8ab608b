"""Sums of weighted rows and products of rows: in float64 the same, for every width; one output's bits are those of several."""

import numba
import pytest
import torch

from understudy.kernels.weighted import BLOCK, add_rows, combine_rows, dots


@numba.njit
def added(rows: int, steps: int, count: int, stride: int, weights: int, outputs: int, apart: int, out: int, width: int) -> None:
    add_rows(rows, steps, count, stride, weights, outputs, apart, out, width)


@numba.njit
def dotted(row: int, width: int, x: int, outputs: int, out: int, spread: int) -> None:
    dots(row, width, x, outputs, out, spread)


@pytest.mark.parametrize("width", [1, 15, 16, 50, 64, 128, 203])
@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("outputs", [2, 4, 7])
def test_weighted_rows_are_added(width: int, count: int, outputs: int) -> None:
    random = torch.Generator().manual_seed(width)
    rows, weights = torch.randn(90, width + 3, generator=random), torch.randn(outputs, 40, generator=random)
    start = torch.randn(outputs, width, generator=random)
    steps = torch.randperm(90, generator=random)[:40]
    all_of_them, one = start.clone(), start[-1].clone()
    place = (rows.data_ptr(), steps.data_ptr(), count, rows.stride(0) * 4)
    added(*place, weights.data_ptr(), outputs, 40, all_of_them.data_ptr(), width)
    added(*place, weights[-1].data_ptr(), 1, 0, one.data_ptr(), width)
    expected = start.double() + weights[:, :count].double() @ rows[steps[:count], :width].double()
    torch.testing.assert_close(all_of_them.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(one, all_of_them[-1])


@pytest.mark.parametrize("width", [1, 15, 16, 50, 64, 128, 203])
def test_rows_are_multiplied(width: int) -> None:
    row, x = torch.randn(width), torch.randn(2, width)
    both, one = torch.zeros(8), torch.zeros(1)
    dotted(row.data_ptr(), width, x.data_ptr(), 2, both.data_ptr(), 5)
    dotted(row.data_ptr(), width, x[1].data_ptr(), 1, one.data_ptr(), 1)
    torch.testing.assert_close(both[[0, 5]].double(), x.double() @ row.double(), atol=1e-5, rtol=1e-5)
    assert both[5] == one[0] and float(both[[1, 2, 3, 4, 6, 7]].abs().max()) == 0


@numba.njit
def combined(rows: int, count: int, weights: int, outputs: int, apart: int, out: int, width: int) -> None:
    combine_rows(rows, count, weights, outputs, apart, out, width)


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("outputs", [1, 2, 3, 7, 24])
def test_rows_of_a_block_are_combined(count: int, outputs: int) -> None:
    random = torch.Generator().manual_seed(count)
    rows, weights = torch.randn(40, BLOCK, generator=random), torch.randn(outputs, 45, generator=random)
    out, one = torch.full((outputs, BLOCK + 3), 7.0), torch.full((BLOCK,), 7.0)
    combined(rows.data_ptr(), count, weights.data_ptr(), outputs, 45, out.data_ptr(), BLOCK + 3)
    combined(rows.data_ptr(), count, weights[-1].data_ptr(), 1, 0, one.data_ptr(), 0)
    expected = weights[:, :count].double() @ rows[:count].double()
    torch.testing.assert_close(out[:, :BLOCK].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(one, out[-1, :BLOCK]) and bool((out[:-1, BLOCK:] == 7).all())
