"""Tiles are read by vectors of both widths as torch reads them, with one factor for a block and with one for each row."""

from typing import Any

import numba
import pytest
import torch
from numba import types
from numba.extending import intrinsic

from tests.kernels.test_eighths_coding import weights
from understudy.kernels import eighths_coding
from understudy.kernels.eighths import EighthsTile, reader
from understudy.kernels.eighths_coding import tile_of
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import unblock
from understudy.kernels.residual_packed import widest
from understudy.quantizers import quantizer

WIDTHS = (32, 64) if widest() == 64 else (32,)


def tile_reader(bits: int, width: int, shared: bool) -> Any:
    """What reads a tile by vectors of `width` bytes, also where the kernels of this machine would take others."""

    @intrinsic
    def read(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, out: Any, factors: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, out, factors = arguments
            tile = EighthsTile(context, builder, bits, scales, width, factors, shared)
            return tile.read(codes, dense, stream, start, columns, out)

        return types.int64(*[types.int64] * 8), generate

    made: Any = read

    @numba.njit
    def call(codes: int, scales: int, dense: int, stream: int, start: int, columns: int, out: int, factors: int) -> int:
        return int(made(codes, scales, dense, stream, start, columns, out, factors))

    return call


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_tiles_come_back_but_for_their_exceptions(spec: str, shared: bool, width: int) -> None:
    blocks, factors = weights(64, 192, 64, alike=shared, kind="any")
    substitute = quantizer(spec).quantize(unblock(blocks, 64))
    codes, scales = substitute["codes"], substitute["scales"]
    bits, tile = codes.shape[2] // 8, tile_of(192, len(scales), codes.shape[2] // 8, 64)
    made = eighths_coding.encode(blocks, codes, scales, factors)
    assert made is not None and factors.values.shape[2] == (1 if shared else 64)
    table, out = made.table.to(torch.int64), torch.zeros_like(blocks)
    read = tile_reader(bits, width, shared)
    # Where one holds for all rows, others follow.
    values = torch.cat((factors.values.view(-1), torch.ones(64)))
    for t in range(192 // tile):
        after = read(
            codes.data_ptr() + t * tile * 8 * bits, scales[t * len(scales) // (192 // tile)].data_ptr(),
            made.dense.data_ptr() + t * tile * (made.dense.numel() // 192), made.stream.data_ptr(),
            int(table[t, 0]), tile, out.data_ptr() + t * tile * 128,
            values.data_ptr() + t * tile // 64 * factors.values.shape[2] * 4,
        )  # fmt: skip
        assert after == table[t + 1, 0], "it read another number of bits"
        for place, word in made.exceptions[int(table[t, 1]) : int(table[t + 1, 1])].view(torch.int16).tolist():
            out.view(torch.int16)[0, t * tile + place // 64, place % 64] = word
    assert torch.equal(out.view(torch.int16), blocks.view(torch.int16))


def test_machine_code_is_made_once_for_each_copy() -> None:
    assert len({reader(bits) for bits in (4, 6, 4)}) == 2


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 16, 33])
def test_products_are_those_of_the_weights_as_they_are(rows: int, alike: bool) -> None:
    blocks, factors = weights(200, 192, 64, alike=alike)
    substitute = quantizer("int4").quantize(unblock(blocks, 200))
    made = eighths_coding.encode(blocks, substitute["codes"], substitute["scales"], factors)
    assert made is not None
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = [torch.empty(rows, len(blocks), 64, dtype=torch.bfloat16) for _ in range(2)]
    operands = Operand.eighths(made, substitute["codes"], substitute["scales"], factors), Operand.plain(blocks)
    for operand, out in zip(operands, found, strict=True):
        BlockProduct([(operand, 0)])([x], out)
    assert torch.equal(found[0].view(torch.int16), found[1].view(torch.int16)) and found[0].float().abs().sum() > 0
