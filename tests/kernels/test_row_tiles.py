"""Any number of rows: each gets what it gets alone, however rows are cut into tiles."""

from typing import Any

import numba
import pytest
import torch

from understudy.kernels import draft_product as made
from understudy.kernels.dot import group_dot
from understudy.kernels.row_tiles import FEW
from understudy.kernels.unpacked_dot import ROOM

KERNELS: dict[int, Any] = {2: made._two, 3: made._three, 4: made._four, 6: made._six, 8: made._eight}
MOST = 11


@pytest.mark.parametrize("bits", list(KERNELS))
def test_each_row_gets_what_it_gets_alone(bits: int) -> None:
    dot = KERNELS[bits]
    one = group_dot(bits, 1, "float32")

    @numba.njit
    def together(codes: int, x: int, columns: int, scales: int, steps: int, out: int, count: int, room: int) -> Any:
        dot(codes, x, columns, scales, steps, out, count, room, True)

    @numba.njit
    def alone(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int) -> Any:
        one(codes, x, stride, columns, scales, steps, out)

    generator = torch.Generator().manual_seed(bits)
    # memory is asked for what lies behind the codes, which is never read
    codes = torch.randint(0, 256, (64, 8 * bits), generator=generator, dtype=torch.uint8)
    x = torch.randint(-127, 128, (MOST, 64), generator=generator, dtype=torch.int8)
    scales = torch.randn((64, 2), generator=generator).to(torch.bfloat16)
    steps = torch.rand((MOST, 2), generator=generator)
    room = torch.empty(ROOM + 64, dtype=torch.uint8)
    begin = (room.data_ptr() + 63) // 64 * 64
    wanted = torch.ones((MOST, 64))
    for r in range(MOST):
        alone(codes.data_ptr(), x[r].data_ptr(), 64, 64, scales.data_ptr(), steps[r].data_ptr(), wanted[r].data_ptr())
    assert FEW < 4 < MOST
    for count in range(1, MOST + 1):
        out = torch.ones((MOST, 64))
        together(codes.data_ptr(), x.data_ptr(), 64, scales.data_ptr(), steps.data_ptr(), out.data_ptr(), count, begin)
        assert torch.equal(out[:count], wanted[:count]), count
        assert out[count:].eq(1).all()
