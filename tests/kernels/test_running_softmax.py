"""A softmax over blocks of scores is that of all at once; a row has the same bits alone; places beside do not count."""

from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels.running_softmax import begin, lines, total, weights


@numba.njit
def made(scores: Any, target: Any, limits: Any, scale: float, tops: Any, sums: Any, fades: Any, halves: bool) -> bool:
    state = tops.ctypes.data, sums.ctypes.data, fades.ctypes.data
    return weights(scores.ctypes.data, target.ctypes.data, len(scores), limits, np.float32(scale), state, halves)


class Rows:
    """Some rows, and what they have seen so far."""

    def __init__(self, count: int, sinks: np.ndarray, halves: bool) -> None:
        self.halves = np.bool_(halves)
        self.tops, self.sums, self.fades = np.empty(count, np.float32), lines(count, 16), np.zeros(count, np.float32)
        # weights of each block, times what they have faded by
        self.blocks: list[torch.Tensor] = []
        begin(self.tops, self.sums, sinks)

    def see(self, scores: torch.Tensor, limits: tuple[int, int], scale: float) -> bool:
        given, target = lines(len(scores), 64), lines(len(scores), 64)
        given[:] = scores.numpy()
        higher = bool(made(given, target, limits, scale, self.tops, self.sums, self.fades, self.halves))
        bits = torch.from_numpy(target.reshape(-1).view(np.uint16)[: target.size].copy().view(np.int16)).view(torch.bfloat16)
        found = bits.view(-1, 64).float() if self.halves else torch.from_numpy(target.copy())
        fades = torch.from_numpy(self.fades.copy())[:, None]
        assert higher == bool((fades != 1).any()) or higher
        self.blocks = [*(block * fades for block in self.blocks), found]
        return higher

    def softmax(self) -> torch.Tensor:
        sums = torch.tensor([total(row) for row in self.sums])
        return torch.cat(self.blocks, 1) / sums[:, None]


@pytest.mark.parametrize("halves", [False, True])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), ends=st.tuples(st.integers(0, 63), st.integers(0, 63)), sinks=st.booleans(), seed=st.integers(0, 99))
def test_it_is_torchs_softmax_of_the_places_between(halves: bool, rows: int, ends: tuple[int, int], sinks: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, 192, generator=generator) * 20
    sink = torch.randn(rows, generator=generator) * 4 if sinks else torch.empty(0)
    seen = Rows(rows, sink.numpy(), halves)
    limits = [(ends[0], 63), (0, 63), (0, ends[1])]
    risen = [seen.see(scores[:, 64 * block : 64 * block + 64], limits[block], 0.2) for block in range(3)]
    assert risen[0] or sinks
    shown = torch.full_like(scores, -torch.inf)
    shown[:, ends[0] : 129 + ends[1]] = scores[:, ends[0] : 129 + ends[1]] * 0.2
    if sinks:
        shown = torch.cat([shown, sink[:, None]], 1)
    expected = shown.double().softmax(1)[:, :192]
    found = seen.softmax()
    assert bool((found[expected == 0] == 0).all())
    torch.testing.assert_close(found.double(), expected, rtol=4e-3 if halves else 3e-6, atol=1e-30 if not halves else 1e-9)


@pytest.mark.parametrize("halves", [False, True])
def test_a_row_has_the_same_bits_alone(halves: bool) -> None:
    scores = torch.randn(7, 128, generator=torch.Generator().manual_seed(5)) * 9
    together, nobody = Rows(7, np.empty(0, np.float32), halves), np.empty(0, np.float32)
    for block in range(2):
        together.see(scores[:, 64 * block : 64 * block + 64], (3, 60), 1.0)
    for row in range(7):
        alone = Rows(1, nobody, halves)
        for block in range(2):
            alone.see(scores[row : row + 1, 64 * block : 64 * block + 64], (3, 60), 1.0)
        assert torch.equal(alone.softmax()[0], together.softmax()[row]) and np.array_equal(alone.sums[0], together.sums[row])


def test_nothing_fades_where_no_score_is_higher() -> None:
    rows = Rows(2, np.empty(0, np.float32), False)
    assert rows.see(torch.full((2, 64), 3.0), (0, 63), 1.0)
    before = rows.sums.copy()
    assert not rows.see(torch.full((2, 64), -50.0), (0, 63), 1.0) and bool((rows.fades == 1).all())
    assert rows.see(torch.tensor([[0.0], [4.0]]).expand(2, 64).contiguous(), (63, 63), 1.0)
    assert rows.fades[0] == 1 and 0.3 < rows.fades[1] < 0.4 and rows.sums[1, 0] < before[1, 0] < rows.sums[0, 0] + 1e-6


def test_what_is_no_number_makes_all_none_and_only_in_its_row() -> None:
    scores = torch.zeros(2, 64)
    scores[0, 9] = torch.nan
    rows = Rows(2, np.empty(0, np.float32), False)
    rows.see(scores, (0, 63), 1.0)
    assert np.isnan(total(rows.sums[0])) and total(rows.sums[1]) == 64


def test_lines_begin_where_those_of_the_processors_cache_do() -> None:
    for count, size in ((1, 16), (3, 64), (5, 48)):
        room = lines(count, size)
        assert room.shape == (count, size) and room.ctypes.data % 64 == 0 and not room.any()
