"""Codes that are unpacked for several rows: what is added has the bits that it has for codes as they are packed."""

from typing import Any

import numba
import pytest
import torch

from understudy.kernels.byte_dot import ByteDot, BytesDot, LargeBytesDot, VnniDot
from understudy.kernels.dot import best, group_dot
from understudy.kernels.instructions import has
from understudy.kernels.unpacked_dot import MOST_COLUMNS, ROOM, SCALES, applies, in_order, rows_dot, unpack_group

# of codes of as many bits
HERE = {
    bits: [each for each in (LargeBytesDot if bits == 6 else BytesDot, VnniDot) if has(*each.needs)] for bits in (2, 3, 4, 6)
}


def _unpacked(bits: int, rows: int, way: type[ByteDot], given: dict[str, torch.Tensor]) -> torch.Tensor:
    unpack, add, order = unpack_group(bits, way=way), rows_dot(bits, rows, way), in_order(bits, way)

    @numba.njit
    def call(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int, room: int) -> Any:
        unpack(codes, columns, scales, room)
        add(room, x, stride, columns, room + SCALES, steps, out)
        order(out, rows)

    room, out = torch.empty(ROOM + 64, dtype=torch.uint8), torch.ones((rows, 64))
    codes, x, scales, steps = (given[name].data_ptr() for name in ("codes", "x", "scales", "steps"))
    begin = (room.data_ptr() + 63) // 64 * 64
    call(codes, x, given["x"].shape[1], given["codes"].shape[0], scales, steps, out.data_ptr(), begin)
    return out


def _packed(bits: int, rows: int, given: dict[str, torch.Tensor]) -> torch.Tensor:
    add = group_dot(bits, rows, "float32")

    @numba.njit
    def call(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int) -> Any:
        add(codes, x, stride, columns, scales, steps, out)

    out = torch.ones((rows, 64))
    codes, x, scales, steps = (given[name].data_ptr() for name in ("codes", "x", "scales", "steps"))
    call(codes, x, given["x"].shape[1], given["codes"].shape[0], scales, steps, out.data_ptr())
    return out


@pytest.mark.skipif(not HERE[4], reason="codes are unpacked for AVX2 and AVX-VNNI")
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("columns", [16, 48, MOST_COLUMNS])
def test_unpacked_codes_give_the_bits_of_packed_ones(bits: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(bits + rows)
    given = {
        "codes": torch.randint(0, 256, (columns, 8 * bits), generator=generator, dtype=torch.uint8),
        "x": torch.randint(-127, 128, (rows, columns + 32), generator=generator, dtype=torch.int8),
        "scales": torch.randn((64, 2), generator=generator).to(torch.bfloat16),
        "steps": torch.rand((rows, 2), generator=generator),
    }
    wanted = _packed(bits, rows, given)
    assert wanted.std() > 0
    for way in HERE[bits]:
        assert torch.equal(_unpacked(bits, rows, way, given), wanted), way


@pytest.mark.skipif(not HERE[4], reason="codes are unpacked for AVX2 and AVX-VNNI")
@pytest.mark.parametrize("number", [127, -127])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_largest_sums_do_not_overflow(bits: int, number: int) -> None:
    given = {
        "codes": torch.full((MOST_COLUMNS, 8 * bits), 255, dtype=torch.uint8),
        "x": torch.full((4, MOST_COLUMNS), number, dtype=torch.int8),
        "scales": torch.tensor([1.0, 0.0]).to(torch.bfloat16).repeat(64, 1),
        "steps": torch.tensor([1.0, 0.0]).repeat(4, 1),
    }
    for way in HERE[bits]:
        assert torch.equal(_unpacked(bits, 4, way, given), torch.full((4, 64), 1.0 + MOST_COLUMNS * number * (2**bits - 1)))


def test_codes_are_unpacked_where_16_registers_multiply_bytes() -> None:
    for bits in (2, 3, 4, 6, 8):
        assert applies(bits) == (best(bits) in (BytesDot, LargeBytesDot, VnniDot))
    if has("avx2") and not has("avx512bw") and not has("avxvnni"):
        assert [bits for bits in (2, 3, 4, 6, 8) if applies(bits)] == [2, 3, 4, 6]
