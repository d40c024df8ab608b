"""A column's codes come out of their packed bytes as `unpack` reads them, row by row, for every width."""

from typing import Any

import numba
import pytest
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from understudy.kernels.codes import Codes
from understudy.kernels.pack import unpack


def reader(bits: int) -> Any:
    """A function that writes the 64 codes of the column at the first address to the second."""

    @intrinsic
    def read(typing: Any, address: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Codes(context, builder, bits)
            for v, vector in enumerate(code.column(arguments[0])):
                assert vector.type == ir.VectorType(ir.IntType(8), 16)
                code.store(vector, code.at(arguments[1], 16 * v))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @numba.njit
    def call(address: int, target: int) -> None:
        read(address, target)

    return call


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_every_row_has_its_code(bits: int) -> None:
    columns = 40
    generator = torch.Generator().manual_seed(bits)
    packed = torch.randint(0, 256, (columns, 8 * bits), generator=generator, dtype=torch.uint8)
    found = torch.zeros(columns, 64, dtype=torch.uint8)
    read = reader(bits)
    for column in range(columns):
        read(packed[column].data_ptr(), found[column].data_ptr())
    wanted = packed if bits == 8 else unpack(packed[None], 64).T
    assert torch.equal(found, wanted.to(torch.uint8))
    assert len(found.unique()) == min(1 << bits, 256) or bits == 8
