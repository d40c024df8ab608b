"""One step of a state: in float64 the same, and the same bits wherever a number stands."""

import numba
import pytest
import torch

from understudy.kernels.channel_vectors import advance_rated, advance_rows
from understudy.kernels.weighted import BLOCK, LANES


@numba.njit
def rows_advanced(source: int, into: int, count: int, factors: int, weights: int, update: int) -> None:
    advance_rows(source, into, count, factors, weights, update)


@numba.njit
def rated_advanced(states: tuple[int, int], vectors: int, given: tuple[int, int, int, int, int], sums: int) -> None:
    advance_rated(states[0], states[1], vectors, given[0], given[1], given[2], given[3], given[4], sums)


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("in_place", [True, False])
def test_rows_are_left_in_part_and_added_to(count: int, in_place: bool) -> None:
    random = torch.Generator().manual_seed(count)
    source, update = torch.randn(count, BLOCK, generator=random), torch.randn(BLOCK, generator=random)
    factors, weights = torch.rand(count, generator=random), torch.randn(count, generator=random)
    # columns that hold the same numbers have the same bits
    source[:, 41], update[41] = source[:, 2], update[2]
    expected = factors[:, None].double() * source.double() + weights[:, None].double() * update.double()
    into = source if in_place else torch.full((count + 1, BLOCK), 7.0)
    given = (factors, weights, update)
    rows_advanced(source.data_ptr(), into.data_ptr(), count, *(tensor.data_ptr() for tensor in given))
    torch.testing.assert_close(into[:count].double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(into[:, 41], into[:, 2]) and (in_place or bool((into[count:] == 7).all()))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("in_place", [True, False])
def test_rates_make_what_is_left(vectors: int, in_place: bool) -> None:
    random = torch.Generator().manual_seed(vectors)
    size = LANES * vectors
    source, rates = torch.randn(BLOCK, size, generator=random), -3 * torch.rand(BLOCK, size, generator=random)
    lengths, updates = torch.rand(BLOCK, generator=random), torch.randn(BLOCK, generator=random)
    key, query = torch.randn(size, generator=random), torch.randn(size, generator=random)
    # one that forgets all, one that forgets nothing, and two that are alike
    lengths[5], lengths[6] = 1e9, 0.0
    for each in (source, rates, lengths, updates):
        each[50] = each[9]
    wide = [each.double() for each in (source, rates, lengths, updates, key, query)]
    expected = torch.exp(wide[1] * wide[2][:, None]) * wide[0] + wide[3][:, None] * wide[4]
    into, sums = source if in_place else torch.empty_like(source), torch.empty(BLOCK * (1 + LANES))
    given = tuple(each.data_ptr() for each in (rates, lengths, updates, key, query))
    rated_advanced((source.data_ptr(), into.data_ptr()), vectors, given, sums.data_ptr())
    torch.testing.assert_close(into.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(sums[:BLOCK].double(), expected @ wide[5], atol=1e-5, rtol=1e-5)
    assert torch.equal(into[50], into[9]) and sums[50] == sums[9]
