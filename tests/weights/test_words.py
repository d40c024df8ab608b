"""Codes and zero points of GPTQ, AWQ and compressed-tensors are told from words, some rows at a time, and words from codes."""

import pytest
import torch
from torch import Tensor

from tests.quantised import AWQ_ORDER, words
from understudy.weights.words import AWQ, CENTRE, GPTQ, points, published, rows_of, window


def codes(rows: int, columns: int) -> Tensor:
    return torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(rows + columns), dtype=torch.uint8)


@pytest.mark.parametrize("order", [GPTQ, AWQ])
def test_codes_of_any_rows_and_back(order: str) -> None:
    own = codes(48, 64)
    made = words(own, range(8)).T.contiguous() if order == GPTQ else words(own.T.contiguous(), AWQ_ORDER)
    pairs = own[:, ::2] | own[:, 1::2] << 4
    for first, count in ((0, 48), (5, 11), (8, 8), (47, 1), (3, 45)):
        start, width = window(order, first, count)
        found = rows_of(order, made[:, start : start + width], first, count)
        assert torch.equal(found, pairs[first : first + count])
    assert torch.equal(published(order, pairs), made)


@pytest.mark.parametrize("order", [GPTQ, AWQ, ""])
def test_zero_points_of_any_rows(order: str) -> None:
    own = codes(48, 5)
    made = words(own.T.contiguous(), AWQ_ORDER if order == AWQ else range(8))
    made = made if order else made.T.contiguous()
    for first, count in ((0, 48), (5, 11), (8, 8), (47, 1)):
        found = points(order, made, first, count, 0)
        assert torch.equal(found, own[first : first + count].to(torch.int8) - CENTRE)


def test_zero_points_that_are_published_as_less_carry_into_the_next() -> None:
    """As the sum of words, which is what is done where they are read."""
    own = torch.tensor([[7, 15, 0, 14, 3, 3, 3, 15]], dtype=torch.uint8)
    found = points(GPTQ, words(own, range(8)), 0, 8, 1)
    assert (found.T + CENTRE).tolist() == [[8, 0, 2, 15, 4, 4, 4, 0]]
