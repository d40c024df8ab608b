"""The blocked layout. Output rows are padded to a multiple of 64 and cut in blocks of 64; a block is stored as [K, 64].

A block's 4-bit codes are K runs of 32 bytes: byte j of run k holds row j in its low half and row 32 + j in its high
half. That is how ATen packs int4 on a CPU with AVX-512, so its kernel, ours and the decoder read the same codes."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import bits, compiled
from .turn import turn_1, turn_2, turn_4

BLOCK = 64


def blocks_of(rows: int) -> int:
    """How many blocks hold `rows` output rows."""
    return -(-rows // BLOCK)


def block(weight: Tensor) -> Tensor:  # [N, K] -> [nb, K, 64]
    """`weight` in blocks, rows padded with zeros. Any dtype of 1, 2 or 4 bytes; bits are kept as they are."""
    rows, columns = weight.shape
    blocks = torch.empty((blocks_of(rows), columns, BLOCK), dtype=weight.dtype)
    _block(bits(weight.contiguous()), bits(blocks))
    return blocks


def unblock(blocks: Tensor, rows: int) -> Tensor:  # [nb, K, 64] -> [rows, K]
    """The first `rows` output rows of `blocks`, row after row."""
    if blocks.device.type != "cpu":
        return blocks.transpose(1, 2).reshape(-1, blocks.shape[1])[:rows]
    weight = torch.empty((rows, blocks.shape[1]), dtype=blocks.dtype)
    _unblock(bits(blocks.contiguous()), bits(weight))
    return weight


def pack(codes: Tensor) -> Tensor:  # [N, K] of 0..15 -> [nb, K, 32]
    """Two codes a byte, in blocks."""
    blocks = block(codes.to(torch.uint8))
    return blocks[:, :, :32] | (blocks[:, :, 32:] << 4)


def unpack(packed: Tensor, rows: int) -> Tensor:  # [nb, K, 32] -> [rows, K] of 0..15
    """The codes of the first `rows` output rows."""
    return unblock(torch.cat((packed & 15, packed >> 4), dim=2), rows)


@cache
def native_packing() -> bool:
    """Whether ATen's int4 kernel reads our layout on this machine, found by packing a known pattern."""
    codes = torch.arange(128 * 96, dtype=torch.int32).view(128, 96) * 7 % 16
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return torch.equal(theirs.reshape(-1), pack(codes).reshape(-1))


@compiled
def _block(weight: Any, blocks: Any) -> None:
    rows, columns = weight.shape
    for b in range(blocks.shape[0]):
        full = min(rows - b * 64, 64)
        for k in range(0, columns, 64):
            width = min(columns - k, 64)
            _turn(weight[b * 64 : b * 64 + full, k : k + width], blocks[b, k : k + width, :full])
        for k in range(columns if full < 64 else 0):
            for j in range(full, 64):
                blocks[b, k, j] = 0


@compiled
def _unblock(blocks: Any, weight: Any) -> None:
    rows, columns = weight.shape
    for b in range((rows + 63) // 64):
        full = min(rows - b * 64, 64)
        for k in range(0, columns, 64):
            width = min(columns - k, 64)
            _turn(blocks[b, k : k + width, :full], weight[b * 64 : b * 64 + full, k : k + width])


@compiled
def _turn(source: Any, target: Any) -> None:
    """target = source.T, a few rows and columns: in square tiles as far as they go, then one by one."""
    size = source.itemsize
    side = 16 if size == 4 else 32
    rows, columns = source.shape[0] // side * side, source.shape[1] // side * side
    for i in range(0, rows, side):
        for j in range(0, columns, side):
            here, there = source[i:, j:].ctypes.data, target[j:, i:].ctypes.data
            if size == 1:
                turn_1(here, source.strides[0], there, target.strides[0])
            elif size == 2:
                turn_2(here, source.strides[0], there, target.strides[0])
            else:
                turn_4(here, source.strides[0], there, target.strides[0])
    for i in range(source.shape[0]):
        for j in range(columns if i < rows else 0, source.shape[1]):
            target[j, i] = source[i, j]


def has_nan(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds a NaN; reads the bits once."""
    kinds = {torch.bfloat16: (0x7FFF, 0x7F80), torch.float16: (0x7FFF, 0x7C00), torch.float32: (0x7FFFFFFF, 0x7F800000)}
    if tensor.dtype not in kinds or not tensor.numel():
        return bool(tensor.is_floating_point() and torch.isnan(tensor.float()).any())
    mask, infinity = kinds[tensor.dtype]
    words = bits(tensor.contiguous().view(-1))
    return bool(_largest(words, words.dtype.type(mask)) > np.uint64(infinity))


@compiled
def _largest(words: Any, mask: Any) -> Any:
    largest = words[0] & mask
    for i in range(words.size):
        magnitude = words[i] & mask
        largest = magnitude if magnitude > largest else largest
    return largest
