"""Rows of tiles are put together by runs of columns, whatever their number and wherever they lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.kernels.cut_rows import cut_rows


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from([2, 16, 32]), st.integers(0, 5),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip
def test_each_run_of_columns_has_all_rows(heights: list[int], half: int, width: int, more: int, fewer: int, apart: bool) -> None:
    columns = 2 * half
    wide = columns + 2 * apart
    tiles = [torch.randn(height, wide).bfloat16()[:, :columns] for height in heights]
    rows = max(sum(heights) - fewer, 1)
    found = cut_rows(tiles, rows, rows + more, width)
    padded = torch.nn.functional.pad(torch.cat(tiles)[:rows], (0, -columns % width, 0, more))
    wanted = padded.reshape(rows + more, -1, width).transpose(0, 1)
    assert torch.equal(found[:-1], wanted[:-1]), "whole runs"
    last = columns - (len(found) - 1) * width
    assert torch.equal(found[-1, :, :last], wanted[-1, :, :last])


def test_columns_in_another_order_are_copied_and_missing_rows_are_found() -> None:
    tile = torch.randn(8, 4).bfloat16().T
    assert torch.equal(cut_rows([tile], 4, 4, 8)[0], tile)
    with pytest.raises(AssertionError, match="fewer rows"):
        cut_rows([tile], 5, 5, 8)
