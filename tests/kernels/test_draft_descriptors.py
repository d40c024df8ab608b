"""Structures of the draft's kernels are read back as they were filled in."""

import ctypes

import numba

from understudy.kernels.draft_descriptors import (
    MATRIX_BYTES,
    CodedMatrix,
    DraftRun,
    LevelRun,
    coded_matrix,
    draft_run,
    level_run,
)


@numba.njit
def numbers(matrix: int, product: int, level: int) -> tuple[int, int, int]:
    return coded_matrix(matrix).scales_stride, draft_run(product).gate, level_run(level).turned


def test_a_kernel_reads_what_was_filled_in() -> None:
    matrix, product, level = CodedMatrix(scales_stride=7), DraftRun(gate=2), LevelRun(turned=48)
    assert numbers(*(ctypes.addressof(each) for each in (matrix, product, level))) == (7, 2, 48)
    assert ctypes.sizeof(matrix) == MATRIX_BYTES
