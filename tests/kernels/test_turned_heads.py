"""Where a head lies that the products made, and what makes its mean square one; `test_draft_layer` has the rest."""

import ctypes

import numba
import numpy as np
import torch

from understudy.kernels.compiled import bits_of
from understudy.kernels.draft_descriptors import LevelRun, level_run
from understudy.kernels.turned_heads import factor_of, made_at, width_of


@numba.njit
def factor(address: int, i: int, first: int, count: int, line: np.ndarray) -> float:
    return float(factor_of(level_run(address), i, first, count, line))


@numba.njit
def place(address: int, i: int, head: int) -> int:
    return made_at(level_run(address), i, head)


@numba.njit
def width(size: int, itemsize: int) -> int:
    return width_of(size, itemsize)


def test_heads_lie_side_by_side() -> None:
    made = torch.randn(2, (3 + 1) * 8 + 8)
    run = LevelRun(
        heads=3, kv_heads=1, key_size=8, value_size=8, keys_made=1, values_made=1, itemsize=4, made=made.data_ptr(),
        epsilon=bits_of(0.5),
    )  # fmt: skip
    address, line = ctypes.addressof(run), np.zeros(8, np.float32)
    assert place(address, 1, 2) == made[1, 16:].data_ptr()
    for keys, values, line_of in ((1, 0, 32), (0, 0, 24)):
        run.keys_made, run.values_made = keys, values
        assert place(address, 1, 2) == made.data_ptr() + 4 * (line_of + 16)
    run.keys_made, run.values_made = 1, 1
    for first, count in ((0, 3), (3, 1), (1, 1)):
        own = made[1, first * 8 : (first + count) * 8]
        assert np.isclose(factor(address, 1, first, count, line), float((own.square().mean() + 0.5).rsqrt()))


def test_lines_of_small_keys_end_with_their_step() -> None:
    assert (width(16, 1), width(16, 2), width(16, 4)) == (20, 32, 64)
