"""Products by tiles: each row by itself, in the order of sums that the processor's maker gives."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.kernels.amx_dot import COLUMNS, ROWS, amx_products, amx_sums, configure, has_amx, release, shapes
from understudy.tiers.memory import arena

pytestmark = pytest.mark.skipif(not has_amx(), reason="this processor multiplies no tiles, or the system does not let it")


@numba.njit
def call(registers: int, weights: int, columns: int, x: int, stride: int, sums: int) -> None:
    configure(registers)
    amx_sums(weights, columns, x, stride, sums, 256)
    release()


@numba.njit
def fresh(registers: int, weights: int, columns: int, x: int, stride: int, sums: int, pitch: int) -> None:
    configure(registers)
    amx_products(weights, columns, x, stride, sums, pitch)
    release()


def product(weights: Tensor, x: Tensor, sums: Tensor, columns: int = 0) -> Tensor:
    """`sums` [rows, 64] with the products of x [rows, K] and weights [K, 64] added; the matrix has `columns` of which these are the
    last, by default these alone."""
    pairs = weights.view(-1, 2, 4, 16).permute(0, 2, 3, 1).contiguous()
    out = arena(sums.nbytes).view(torch.float32)[: sums.numel()].view(sums.shape).copy_(sums)
    registers = shapes(len(x), columns or len(weights))
    address = np.frombuffer(registers, np.uint8).ctypes.data
    call(address, pairs.data_ptr(), len(weights), x.data_ptr(), x.stride(0) * 2, out.data_ptr())
    return out


def reference(weights: Tensor, x: Tensor, sums: Tensor) -> Tensor:
    """The same in float32, one operation after another: even columns of a tile, odd ones, both, then the sum."""
    total = sums.clone()
    for start in range(0, len(weights), COLUMNS):
        even, odd = torch.zeros_like(sums), torch.zeros_like(sums)
        for k in range(start, min(start + COLUMNS, len(weights)), 2):
            even += x[:, k : k + 1].float() * weights[k].float()
            odd += x[:, k + 1 : k + 2].float() * weights[k + 1].float()
        total += even + odd
    return total


def drawn(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    weights = torch.randn(columns, 64, generator=generator).bfloat16()
    x = torch.randn(rows, columns + 6, generator=generator).bfloat16()[:, :columns]
    return weights, x, torch.randn(rows, 64, generator=generator)


@pytest.mark.parametrize("columns", [2, 30, 32, 64, 98])
@pytest.mark.parametrize("rows", [1, 5, ROWS])
def test_sums_have_the_bits_of_the_order_that_is_written_down(rows: int, columns: int) -> None:
    weights, x, sums = drawn(rows, columns)
    found = product(weights, x, sums)
    assert torch.equal(found, reference(weights, x, sums))
    for row in range(rows):
        assert torch.equal(found[row], product(weights, x[row : row + 1], sums[row : row + 1])[0])


def test_columns_may_be_cut_between_tiles() -> None:
    weights, x, sums = drawn(7, 98)
    first = product(weights[:64], x[:, :64], sums, columns=98)
    assert torch.equal(product(weights[64:], x[:, 64:], first, columns=98), product(weights, x, sums))


def test_products_alone_begin_with_zeros_and_go_where_lines_lie() -> None:
    weights, x, _ = drawn(5, 64)
    pairs = weights.view(-1, 2, 4, 16).permute(0, 2, 3, 1).contiguous()
    out = torch.full((5, 80), 7.0)
    address = np.frombuffer(shapes(5, 64), np.uint8).ctypes.data
    fresh(address, pairs.data_ptr(), 64, x.data_ptr(), x.stride(0) * 2, out.data_ptr(), 320)
    assert torch.equal(out[:, :64], reference(weights, x, torch.zeros(5, 64))) and bool((out[:, 64:] == 7).all())
