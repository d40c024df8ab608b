"""A tile lands turned on its side, every element of it, and nothing beside the tile is written."""

from typing import Any

import numba
import numpy as np
import pytest

from understudy.kernels import transpose
from understudy.kernels.transpose import SIDE, transposer


def turned(size: int) -> Any:
    inner = transposer(size)

    @numba.njit
    def call(source: int, source_pitch: int, target: int, target_pitch: int) -> None:
        inner(source, source_pitch, target, target_pitch)

    return call


@pytest.mark.parametrize("size", list(SIDE))
def test_element_i_j_goes_to_j_i(size: int) -> None:
    side, kind = SIDE[size], np.dtype(f"uint{8 * size}")
    call, chance = turned(size), np.random.default_rng(size)
    for spare in (0, 5):
        source = chance.integers(0, 1 << 8 * size, (side, side + spare)).astype(kind)
        target = np.full((side, side + 2 * spare), 7, kind)
        call(source.ctypes.data, source.strides[0], target.ctypes.data, target.strides[0])
        assert np.array_equal(target[:, :side], source[:, :side].T)
        assert (target[:, side:] == 7).all()


def test_there_is_one_for_each_size() -> None:
    assert all(hasattr(transpose, f"transpose_{size}") for size in SIDE)
