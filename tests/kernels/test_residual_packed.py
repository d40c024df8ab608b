"""Tiles that are read by AVX2 or AVX-512 give the weights that were written, whatever the codes, the number of columns and the
weights."""

from typing import Any

import numba
import pytest
import torch
from numba import types
from numba.extending import intrinsic

from understudy.kernels.instructions import has
from understudy.kernels.pack import block
from understudy.kernels.residual import encode, tile_columns
from understudy.kernels.residual_packed import PackedTile, widest
from understudy.quantizers import quantizer

pytestmark = pytest.mark.skipif(not has("avx2", "bmi2"), reason="kernels are not compiled for AVX2")


def reader(bits: int, width: int) -> Any:
    """What reads a tile by vectors of `width` bytes, also where the kernels of this machine would take others."""

    @intrinsic
    def read(typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, blocks: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, *rest = arguments
            return PackedTile(context, builder, bits, scales, width).read(codes, *rest)

        return types.int64(*[types.int64] * 7), generate

    made: Any = read

    @numba.njit
    def call(codes: int, scales: int, dense: int, stream: int, start: int, columns: int, blocks: int) -> int:
        return int(made(codes, scales, dense, stream, start, columns, blocks))

    return call


WIDTHS = (32, 64) if widest() == 64 else (32,)
READ = {(bits, width): reader(bits, width) for bits in (2, 3, 4, 6, 8) for width in WIDTHS}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int3:group=16", "int6", "int8"])
@pytest.mark.parametrize(("columns", "odd"), [(192, 0), (384, 7), (96, 50)])
def test_tiles_come_back_but_for_their_exceptions(spec: str, columns: int, odd: int, width: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = (torch.randn(64, columns, generator=generator) * torch.randn(64, 1, generator=generator).exp() * 0.05).bfloat16()
    # zeros of both signs lie in bins that straddle zero
    weight[:, ::5], weight[::3, 1::5] = 0.0, -0.0
    if odd:
        words = weight.view(torch.int16).view(-1)[::odd]
        words.copy_(torch.randint(-(2**15), 2**15, words.shape, generator=generator, dtype=torch.int16))
    made = quantizer(spec).quantize(weight)
    check(block(weight), made["codes"], made["scales"], width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_any_codes_and_scales_come_back(bits: int, width: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    columns, groups = 128, 4
    codes = torch.randint(0, 256, (1, columns, 8 * bits), generator=generator, dtype=torch.uint8)
    # of both signs, from tiny to nearly the largest that are coded
    sizes = 10.0 ** torch.empty(groups, 64, 2).uniform_(-38, 35.9, generator=generator)
    scales = (sizes * torch.where(torch.rand(sizes.shape, generator=generator) < 0.5, -1, 1)).bfloat16()
    scales[1, :, 1] = 0
    scales[2, ::2, 1] = scales[2, ::2, 0]
    scales[3, ::2, 0] = 0
    words = torch.randint(-(2**15), 2**15, (1, columns, 64), generator=generator, dtype=torch.int16)
    blocks = words.view(torch.bfloat16).clone()
    # half of them near a multiple of the scale
    near = scales[:, :, 0].float().repeat_interleave(columns // groups, 0) * torch.randn(columns, 64, generator=generator)
    blocks[0, ::2] = near.bfloat16()[::2]
    check(blocks, codes, scales, width)


def check(blocks: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, width: int) -> None:
    """Write blocks beside codes and scales, and read them again."""
    columns, bits = blocks.shape[1], codes.shape[2] // 8
    residual = encode(blocks, codes, scales)
    tile = tile_columns(columns, len(scales), bits)
    table = residual.table.to(torch.int64)
    out = torch.zeros_like(blocks)
    per_column = residual.dense.numel() // columns
    for t in range(columns // tile):
        first = t * tile
        after = READ[bits, width](
            codes.data_ptr() + first * 8 * bits, scales[t * len(scales) // (columns // tile)].data_ptr(),
            residual.dense.data_ptr() + first * per_column, residual.stream.data_ptr(), int(table[t, 0]), tile,
            out.data_ptr() + first * 128,
        )  # fmt: skip
        assert after == table[t + 1, 0], "it read another number of bits"
        for place, word in residual.exceptions[int(table[t, 1]) : int(table[t + 1, 1])].view(torch.int16).tolist():
            out.view(torch.int16)[0, first + place // 64, place % 64] = word
    assert torch.equal(out.view(torch.int16), blocks.view(torch.int16))
    assert int(table[-1, 0]) > columns, "hardly a weight had bits in the stream"
