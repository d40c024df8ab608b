"""Products with lines of the cache and sums of them, of each type of number and any size, against numpy."""

import numba
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels.cache_lines import score, weigh
from understudy.small_keys import packed, plain


@numba.njit
def scored(lines: np.ndarray, itemsize: int, queries: np.ndarray, out: np.ndarray) -> None:
    score(lines, itemsize, queries, np.float32(0.25), out)


@numba.njit
def weighed(lines: np.ndarray, itemsize: int, weights: np.ndarray, sums: np.ndarray) -> None:
    weigh(lines, itemsize, weights, sums)


def slab(count: int, size: int, itemsize: int) -> tuple[Tensor, Tensor]:
    """Lines of `size` numbers of so many bytes, and what they are."""
    numbers = torch.randn(count, size, generator=torch.Generator().manual_seed(count))
    stored = {1: packed, 2: Tensor.bfloat16, 4: Tensor.float}[itemsize](numbers).contiguous()
    return stored, plain(stored).float()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), count=st.integers(1, 20), size=st.sampled_from([8, 16, 20, 64, 80, 100, 128]),
    itemsize=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99),
)  # fmt: skip
def test_lines_anywhere_are_multiplied_and_added_up(rows: int, count: int, size: int, itemsize: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    stored, numbers = slab(count + 3, size, itemsize)
    order = torch.randperm(count + 3, generator=chance)[:count]
    lines = (stored.data_ptr() + order * stored.stride(0) * stored.itemsize).numpy()
    queries, weights = torch.randn(rows, size, generator=chance), torch.randn(rows, count, generator=chance)
    out, sums = np.full((rows, count), 9, np.float32), torch.randn(rows, size, generator=chance)
    wanted = sums.double() + weights.double() @ numbers[order].double()
    scored(lines, itemsize, queries.numpy(), out)
    weighed(lines, itemsize, weights.numpy(), sums.numpy())
    products = queries.double() @ numbers[order].double().T * 0.25
    assert torch.allclose(torch.from_numpy(out).double(), products, atol=1e-4)
    assert torch.allclose(sums.double(), wanted, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 9), size=st.sampled_from([16, 20, 64, 80]), itemsize=st.sampled_from([1, 2, 4]))
def test_no_bit_of_a_row_depends_on_others(rows: int, size: int, itemsize: int) -> None:
    stored, _ = slab(7, size, itemsize)
    lines = stored.data_ptr() + np.arange(7) * stored.stride(0) * stored.itemsize
    queries, weights = torch.randn(rows, size).numpy(), torch.randn(rows, 7).numpy()
    out, sums = np.zeros((rows, 7), np.float32), np.zeros((rows, size), np.float32)
    scored(lines, itemsize, queries, out)
    weighed(lines, itemsize, weights, sums)
    for r in range(rows):
        alone, total = np.zeros((1, 7), np.float32), np.zeros((1, size), np.float32)
        scored(lines, itemsize, queries[r : r + 1], alone)
        weighed(lines, itemsize, weights[r : r + 1], total)
        assert np.array_equal(alone[0], out[r]) and np.array_equal(total[0], sums[r])
