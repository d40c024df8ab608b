"""Lines of bfloat16 that are multiplied in pairs: what they are, wherever they lie, and each row by itself."""

from itertools import pairwise

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels.paired_lines import STEP, has_pairs, score_pairs, weigh_pairs

pytestmark = pytest.mark.skipif(not has_pairs(), reason="this machine, or what it is held to, has no AVX-512 BF16")


@numba.njit
def scored(lines: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
    score_pairs(lines, queries, np.float32(0.25), out)


@numba.njit
def weighed(lines: np.ndarray, odd: int, weights: np.ndarray, halves: np.ndarray, sums: np.ndarray) -> None:
    weigh_pairs(lines, odd, weights, halves, sums)


def bits(numbers: torch.Tensor) -> np.ndarray:
    return numbers.bfloat16().view(torch.uint16).numpy()


def lines_of(slab: torch.Tensor, order: torch.Tensor) -> np.ndarray:
    return (slab.data_ptr() + order * slab.stride(0) * slab.itemsize).numpy()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), count=st.integers(1, 20), size=st.sampled_from([STEP, 2 * STEP, 3 * STEP, 18 * STEP]),
    odd=st.integers(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_lines_anywhere_are_multiplied_and_added_up(rows: int, count: int, size: int, odd: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    slab = torch.randn(count + 3, size, generator=chance).bfloat16()
    order = torch.randperm(count + 3, generator=chance)[:count]
    queries, weights = torch.randn(rows, size, generator=chance), torch.rand(rows, count, generator=chance)
    out, sums = np.full((rows, count), 9, np.float32), torch.randn(rows, size, generator=chance)
    begun = sums.double().clone()
    scored(lines_of(slab, order), bits(queries), out)
    weighed(lines_of(slab, order), odd, weights.numpy(), bits(weights), sums.numpy())
    numbers = slab[order].double()
    assert torch.allclose(torch.from_numpy(out).double(), queries.bfloat16().double() @ numbers.T * 0.25, atol=1e-3)
    assert torch.allclose(sums.double(), begun + weights.double() @ numbers, atol=4e-3 * count**0.5 * 4)
    rounded = begun + weights.bfloat16().double() @ numbers
    assert (sums.double() - rounded).abs().max() <= (sums.double() - begun).abs().max() * 0.02 + 0.02


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), count=st.integers(2, 20), cuts=st.lists(st.integers(1, 9), max_size=3), odd=st.integers(0, 1))
def test_no_bit_depends_on_other_rows_or_on_where_lines_are_cut_between_pairs(
    rows: int, count: int, cuts: list[int], odd: int
) -> None:
    slab = torch.randn(count, 2 * STEP).bfloat16()
    lines, queries, weights = lines_of(slab, torch.arange(count)), torch.randn(rows, 2 * STEP), torch.rand(rows, count)
    out, sums = np.zeros((rows, count), np.float32), np.zeros((rows, 2 * STEP), np.float32)
    scored(lines, bits(queries), out)
    weighed(lines, odd, weights.numpy(), bits(weights), sums)
    edges = sorted({0, count, *(min(2 * cut - odd, count) for cut in cuts)})
    for r in range(rows):
        alone, total = np.zeros((1, count), np.float32), np.zeros((1, 2 * STEP), np.float32)
        scored(lines, bits(queries[r : r + 1]), alone)
        for first, last in pairwise(edges):
            part = slice(first, last)
            own = weights[r : r + 1, part].contiguous()
            weighed(lines[part], odd if first == 0 else 0, own.numpy(), bits(own), total)
        assert np.array_equal(alone[0], out[r]) and np.array_equal(total[0], sums[r])
