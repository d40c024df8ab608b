"""The integer dot product: each way to multiply bytes gives the bits of float32, and these are what plain arithmetic gives."""

from typing import Any

import numba
import pytest
import torch

from understudy.kernels.byte_dot import WAYS, way
from understudy.kernels.dot import CENTRE, best, group_dot
from understudy.kernels.instructions import has
from understudy.kernels.pack import unpack


def _run(bits: int, rows: int, name: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    add_group = group_dot(bits, rows, name)

    @numba.njit
    def call(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int) -> Any:
        add_group(codes, x, stride, columns, scales, steps, out)

    out = torch.ones((rows, 64))
    addresses = [given[name].data_ptr() for name in ("codes", "x", "scales", "steps")]
    columns = given["codes"].shape[0]
    call(addresses[0], addresses[1], given["x"].shape[1], columns, addresses[2], addresses[3], out.data_ptr())
    return out


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("columns", [16, 64])
def test_both_codes_agree_with_arithmetic(bits: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(bits + rows)
    codes = torch.randint(0, 256, (columns, 8 * bits), generator=generator, dtype=torch.uint8)
    x = torch.randint(-127, 128, (rows, columns + 32), generator=generator, dtype=torch.int8)  # rows lie further apart
    scales = torch.randn((64, 2), generator=generator).to(torch.bfloat16)
    steps = torch.rand((rows, 2), generator=generator)
    given = {"codes": codes, "x": x, "scales": scales, "steps": steps}
    plain = _run(bits, rows, "float32", given)
    values = codes if bits == 8 else unpack(codes[None], 64).T
    sums = x[:, :columns].double() @ values.double()
    scale, zero = scales.double().T
    offset = (zero - CENTRE[bits] * scale) * steps[:, 1:].double()
    wanted = 1 + sums * steps[:, :1].double() * scale + offset
    assert torch.allclose(plain.double(), wanted, rtol=1e-5, atol=1e-3)
    ways = [each for each in WAYS if has(*each.needs) and each.largest >= {6: 63, 8: 255}.get(bits, 28)]
    for each in ways:
        assert torch.equal(_run(bits, rows, each.name, given), plain), each.name


def test_codes_of_8_bits_are_multiplied_by_ways_that_take_them() -> None:
    for bits in (2, 3, 4, 6, 8):
        found = best(bits)
        largest = {6: 63, 8: 255}.get(bits, 28)
        assert found == way(largest) and (found is None or found.largest >= largest)
    assert len({each.name for each in WAYS}) == len(WAYS)
