"""Exponentials, softmax and silu of kernels, against torch's, for any first and last place."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels.softmax import capped, gelu_gate, silu_gate, softmax


@numba.njit
def call(line: np.ndarray, first: int, last: int, sink: float) -> None:
    softmax(line, first, last, np.float32(sink))


@numba.njit
def cap(line: np.ndarray, first: int, last: int, most: float) -> None:
    capped(line, first, last, np.float32(most))


@numba.njit
def by_silu(first: int, second: int) -> None:
    silu_gate(first, second)


@numba.njit
def by_gelu(first: int, second: int) -> None:
    gelu_gate(first, second)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 140), count=st.integers(1, 160), sink=st.sampled_from([-np.inf, -2.0, 5.0]), seed=st.integers(0, 99))
def test_it_is_torchs_softmax_of_the_places_between(first: int, count: int, sink: float, seed: int) -> None:
    last = first + count - 1
    scores = torch.randn((last + 16) // 16 * 16, generator=torch.Generator().manual_seed(seed)) * 4
    line = scores.numpy().copy()
    call(line, first, last, sink)
    own = scores[first : last + 1].double()
    wanted = torch.cat([own, torch.tensor([sink], dtype=torch.float64)]).softmax(0)[:-1]
    assert torch.allclose(torch.from_numpy(line[first : last + 1]).double(), wanted, rtol=2e-6, atol=1e-30)


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(0, 40), count=st.integers(1, 60), most=st.sampled_from([0.5, 20.0, 50.0]),
    size=st.sampled_from([0.01, 1.0, 300.0]),
)  # fmt: skip
def test_scores_are_capped_by_a_tangent(first: int, count: int, most: float, size: float) -> None:
    scores = torch.randn(112, generator=torch.Generator().manual_seed(count)) * size
    line = scores.numpy().copy()
    cap(line, first, first + count - 1, most)
    found, own = torch.from_numpy(line[first : first + count]).double(), scores[first : first + count].double()
    assert torch.allclose(found, most * (own / most).tanh(), rtol=1e-5, atol=2e-6 * most)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 40), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_no_bit_depends_on_what_lies_beside(first: int, count: int, seed: int) -> None:
    last = first + count - 1
    line = (torch.randn(128, generator=torch.Generator().manual_seed(seed)) * 4).numpy()
    other = np.full(128, np.float32(30.0))
    other[first : last + 1] = line[first : last + 1]
    for each in (line, other):
        call(each, first, last, -np.inf)
    assert np.array_equal(line[first : last + 1], other[first : last + 1])


def test_what_is_far_below_the_top_is_nothing_and_what_is_no_number_makes_all_none() -> None:
    line = np.array([0.0, -1000.0, -90.0] + [0.0] * 13, np.float32)
    call(line, 0, 2, -np.inf)
    assert line[0] == 1 and 0 <= line[1] < 1e-37 and 0 <= line[2] < 1e-37
    line = np.array([0.0, np.nan, 1.0] + [0.0] * 13, np.float32)
    call(line, 0, 2, -np.inf)
    assert np.isnan(line[:3]).all()


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_a_gate_is_what_opens_it_times_the_other_half(scale: float) -> None:
    first, second = torch.randn(2, 64, generator=torch.Generator().manual_seed(3)) * scale
    found, other = first.clone(), first.clone()
    by_silu(found.data_ptr(), second.data_ptr())
    assert torch.allclose(found, torch.nn.functional.silu(first) * second, rtol=3e-6, atol=1e-30)
    by_gelu(other.data_ptr(), second.data_ptr())
    wanted = torch.nn.functional.gelu(first.double(), approximate="tanh") * second.double()
    # what is cut off far below zero is next to nothing, and torch's float32 loses it too
    assert torch.allclose(other.double(), wanted, rtol=1e-5, atol=1e-5)
