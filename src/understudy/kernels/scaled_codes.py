"""Blocks of weights that are published as codes of four bits with scales: how they are kept, which `scaled_fours` reads.

Codes are told from the weights and their scales. Zero points need not be the published ones: any will do with which all codes of a
row's group have four bits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .descriptor import ResidualBlocks
from .eighths_coding import LARGEST, SMALLEST, Factors
from .scaled_fours import CENTRE, CODES, MOST

# columns of a tile at most, and what they are a multiple of
WIDEST, EVEN = 128, 8
# what `ResidualBlocks.bits` is of such blocks, of those whose weights are float16 on the way, and of float16 weights
KIND, HALVED, HALVES = 1, 5, 7


@dataclass(frozen=True)
class ScaledCodes:
    """What blocks of weights are made of."""

    # uint8 [nb, K, 32]
    codes: Tensor
    # [nb, K / columns, 64]: float32, or the weights' own type
    scales: Tensor
    # int8 [nb, K / columns, 64]; None: CENTRE
    zeros: Tensor | None
    # neighbouring columns that share them
    columns: int
    # whether weights are rounded to float16 before they are bfloat16; then scales are numbers of float16
    halved: bool = False


def tile_of(columns: int, sharing: int) -> int:
    """How many columns a tile has of a weight with so many columns, of which `sharing` neighbours have one scale; 0: there is no
    size that would do."""
    if columns % sharing:
        return 0
    return next((size for size in range(min(sharing, WIDEST), 0, -1) if sharing % size == 0 and size % EVEN == 0), 0)


def encode(blocks: Tensor, factors: Factors) -> ScaledCodes | None:
    """The codes of `blocks` [nb, K, 64], which are multiples of `factors`, rounded once or to float16 first; None where four bits
    do not tell them."""
    once = _encoded(blocks, factors, False)
    return _encoded(blocks, factors, True) if once is None and blocks.dtype == torch.bfloat16 else once


def _encoded(blocks: Tensor, factors: Factors, halved: bool) -> ScaledCodes | None:
    count, columns, rows = blocks.shape
    own = factors.values.expand(-1, -1, rows)
    size = own.abs()
    sharing = min(factors.columns, columns)
    if not tile_of(columns, sharing) or own.shape[1] != columns // sharing:
        return None
    if not SMALLEST <= float(size.min()) <= float(size.max()) <= LARGEST:
        return None
    if halved and not torch.equal(own.to(torch.float16).float(), own):
        return None
    # rows that fill the last block up are zeros without a sign, whatever the scale of the row before them
    if bool((own < 0).any()):
        own = torch.where((blocks.view(torch.int16) == 0).view(count, -1, sharing, rows).all(2), size, own)
    scales, zeros = _briefest(own, blocks.dtype), torch.empty(own.shape, dtype=torch.int8)
    codes = torch.empty(count, columns, CODES, dtype=torch.uint8)
    told = torch.empty_like(blocks[:1])
    # one by one, in little room
    for b in range(count):
        steps = (blocks[b].float().view(-1, sharing, rows) / own[b, :, None]).round_()
        low, high = steps.amin(1), steps.amax(1)
        if not bool((high - low <= MOST).all()):
            return None
        points = torch.where((low >= -CENTRE) & (high <= MOST - CENTRE), CENTRE, -low)
        each = steps.add_(points[:, None]).to(torch.uint8).view(columns, rows)
        zeros[b] = points.to(torch.int8)
        codes[b] = each[:, :CODES] | each[:, CODES:] << 4
        decode(ScaledCodes(codes[b : b + 1], scales[b : b + 1], zeros[b : b + 1], sharing, halved), told)
        if not torch.equal(told[0].view(torch.int16), blocks[b].view(torch.int16)):
            return None
    return ScaledCodes(codes, scales, None if bool((zeros == CENTRE).all()) else zeros, sharing, halved)


def _briefest(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """`scales` in the type `dtype` of the weights if that holds them all, else as they are, in float32."""
    brief = scales.to(dtype)
    return (brief if torch.equal(brief.float(), scales) else scales).contiguous()


def decode(made: ScaledCodes, out: Tensor) -> None:
    """Write the blocks into `out`, bfloat16 or float16 [nb, K, 64], on any device. Room is taken for one block at a time."""
    half = made.codes.shape[2]
    scales, zeros = made.scales, made.zeros
    for b, block in enumerate(out):
        own = scales[b].float()[:, None]
        steps = block.new_empty((len(own), made.columns, 2 * half), dtype=torch.float32)
        steps[..., :half] = (made.codes[b] & MOST).view(-1, made.columns, half)
        steps[..., half:] = (made.codes[b] >> 4).view(-1, made.columns, half)
        steps.sub_(CENTRE if zeros is None else zeros[b].float()[:, None]).mul_(own)
        block.copy_((steps.to(torch.float16) if made.halved else steps).view(block.shape))


def described(made: ScaledCodes, dtype: torch.dtype) -> ResidualBlocks:
    """The blocks, of weights of the type `dtype`, as kernels take them. They hold as long as the tensors of `made`."""
    count, columns, _ = made.codes.shape
    assert made.codes.is_contiguous() and made.scales.is_contiguous() and made.scales.dtype in (dtype, torch.float32)
    tile = tile_of(columns, made.columns)
    return ResidualBlocks(
        count=count,
        columns=columns,
        group=tile,
        scales_stride=64 * made.scales.itemsize,
        sharing=made.columns // tile,
        dense=made.codes.data_ptr(),
        factors=made.scales.data_ptr(),
        exceptions=0 if made.zeros is None else made.zeros.data_ptr(),
        bits=HALVES if dtype == torch.float16 else HALVED if made.halved else KIND,
    )
