"""The blocked layout. Output rows are padded to a multiple of 64 and cut in blocks of 64; a block is stored as [K,
64].

A block's codes are K runs of 8 bytes a bit. 4 bits: byte j of a run holds row j in its low half and row 32 + j in its
high half. That is how ATen packs int4 on a CPU with AVX-512, so its kernel, ours and the decoder read the same codes.
2 bits: byte j holds rows j, 16 + j, 32 + j and 48 + j, from its lowest bits up. 3 bits: 16 such bytes with the low two
bits of each code, then 8 bytes of which bit p of byte i is the third bit of row 8 p + i. 6 bits: the low four bits of each code as
4 bits are packed, then its upper two as 2 are. 8 bits: a byte a row."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .codes import Codes
from .compiled import bits, compiled
from .transpose import transpose_1, transpose_2, transpose_4
from .vector import LONG

BLOCK = 64


def blocks_of(rows: int) -> int:
    """How many blocks hold `rows` output rows."""
    return -(-rows // BLOCK)


def flat(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor: uint8, one dimension, the same memory."""
    return tensor.detach().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def block(weight: Tensor, out: Tensor | None = None) -> Tensor:  # [N, K] -> [nb, K, 64]
    """`weight` in blocks (in `out`, if given), rows padded with zeros. Any dtype of 1, 2 or 4 bytes; bits are kept as
    they are."""
    rows, columns = weight.shape
    blocks = weight.new_empty((blocks_of(rows), columns, BLOCK)) if out is None else out
    if weight.device.type != "cpu":
        padded = torch.nn.functional.pad(weight, (0, 0, 0, -rows % BLOCK))
        return blocks.copy_(padded.view(-1, BLOCK, columns).transpose(1, 2))
    _block(bits(weight.contiguous()), bits(blocks))
    return blocks


def unblock(blocks: Tensor, rows: int) -> Tensor:  # [nb, K, 64] -> [rows, K]
    """The first `rows` output rows of `blocks`, row after row."""
    if blocks.device.type != "cpu":
        return blocks.transpose(1, 2).reshape(-1, blocks.shape[1])[:rows]
    weight = torch.empty((rows, blocks.shape[1]), dtype=blocks.dtype)
    _unblock(bits(blocks.contiguous()), bits(weight))
    return weight


def pack(codes: Tensor, bits: int = 4) -> Tensor:  # [N, K] of 0..2 ** bits - 1 -> [nb, K, 8 * bits]
    """Codes of 2, 3, 4 or 6 bits in blocks, as they lie in memory."""
    blocks = block(codes.to(torch.uint8))
    packed = torch.empty((*blocks.shape[:2], 8 * bits), dtype=torch.uint8)
    _pack(blocks.numpy(), bits, packed.numpy())
    return packed


def unpack(packed: Tensor, rows: int) -> Tensor:  # [nb, K, 8 * bits] -> [rows, K] of 0..2 ** bits - 1
    """The codes of the first `rows` output rows."""
    return unblock(columns_of(packed), rows)


def columns_of(packed: Tensor) -> Tensor:  # [nb, K, 8 * bits] -> [nb, K, 64] of 0..2 ** bits - 1
    """The codes of blocks, a byte each, on any device."""
    bits = packed.shape[2] // 8
    if bits == 8:
        return packed
    if bits in (4, 6):
        codes = torch.cat((packed[:, :, :32] & 15, packed[:, :, :32] >> 4), dim=2)
        if bits == 6:
            codes |= _pairs(packed[:, :, 32:]) << 4
        return codes
    codes = _pairs(packed[:, :, :16])
    if bits == 3:
        codes |= torch.cat([packed[:, :, 16:] >> p & 1 for p in range(8)], dim=2) << 2
    return codes


def _pairs(packed: Tensor) -> Tensor:  # [nb, K, 16] -> [nb, K, 64] of 0..3
    return torch.cat([packed >> 2 * v & 3 for v in range(4)], dim=2)


@cache
def native_packing() -> bool:
    """Whether ATen's int4 kernel reads our layout on this machine, found by packing a known pattern."""
    codes = torch.arange(128 * 96, dtype=torch.int32).view(128, 96) * 7 % 16
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return torch.equal(theirs.reshape(-1), pack(codes).reshape(-1))


def _packer(bits: int) -> Any:
    """Code for use in a kernel: packs the codes of `columns` columns, 64 bytes each. All but `columns` are addresses."""

    @intrinsic
    def pack_columns(typing: Any, numbers: Any, columns: Any, packed: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers, columns, packed = arguments
            code, whole = Codes(context, builder, bits), Codes(context, builder, 8)

            def of_column(k: Any, _: Any) -> list[Any]:
                column = whole.column(code.at(numbers, builder.shl(k, LONG(6))))
                code.put(column, code.at(packed, builder.mul(k, LONG(8 * bits))))
                return []

            code.repeated(columns, [], of_column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return pack_columns


_pack_2, _pack_3, _pack_4, _pack_6 = map(_packer, (2, 3, 4, 6))


@compiled
def _pack(blocks: Any, bits: int, packed: Any) -> None:
    columns = blocks.size // 64
    if bits == 4:
        _pack_4(blocks.ctypes.data, columns, packed.ctypes.data)
    elif bits == 3:
        _pack_3(blocks.ctypes.data, columns, packed.ctypes.data)
    elif bits == 6:
        _pack_6(blocks.ctypes.data, columns, packed.ctypes.data)
    else:
        _pack_2(blocks.ctypes.data, columns, packed.ctypes.data)


@compiled
def _block(weight: Any, blocks: Any) -> None:
    rows, columns = weight.shape
    for b in range(blocks.shape[0]):
        full = min(rows - b * 64, 64)
        for k in range(0, columns, 64):
            width = min(columns - k, 64)
            _transpose(weight[b * 64 : b * 64 + full, k : k + width], blocks[b, k : k + width, :full])
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
            _transpose(blocks[b, k : k + width, :full], weight[b * 64 : b * 64 + full, k : k + width])


@compiled
def _transpose(source: Any, target: Any) -> None:
    """target = source.T, at most 64 rows and columns: square tiles as vectors, the elements that fill no tile one by
    one."""
    size = source.itemsize
    side = 16 if size == 4 else 32
    rows, columns = source.shape[0] // side * side, source.shape[1] // side * side
    for i in range(0, rows, side):
        for j in range(0, columns, side):
            here, there = source[i:, j:].ctypes.data, target[j:, i:].ctypes.data
            if size == 1:
                transpose_1(here, source.strides[0], there, target.strides[0])
            elif size == 2:
                transpose_2(here, source.strides[0], there, target.strides[0])
            else:
                transpose_4(here, source.strides[0], there, target.strides[0])
    for i in range(source.shape[0]):
        for j in range(columns if i < rows else 0, source.shape[1]):
            target[j, i] = source[i, j]


def unusable_value(tensor: Tensor) -> str | None:
    """"NaN" or "an infinity" if the tensor holds one, else None; the bits of usual types are read once."""
    kinds = {torch.bfloat16: (0x7FFF, 0x7F80), torch.float16: (0x7FFF, 0x7C00), torch.float32: (0x7FFFFFFF, 0x7F800000)}
    if tensor.dtype not in kinds or not tensor.numel():
        return _unusable_of_rare_type(tensor)
    mask, infinity = kinds[tensor.dtype]
    words = bits(tensor.contiguous().view(-1))
    largest = _largest(words, words.dtype.type(mask))
    if largest < np.uint64(infinity):
        return None
    return "an infinity" if largest == np.uint64(infinity) else "NaN"


def _unusable_of_rare_type(tensor: Tensor) -> str | None:
    """The same for types that weights seldom have: float64 as it is, smaller floats as float32."""
    if not tensor.is_floating_point():
        return None
    numbers = tensor if tensor.dtype == torch.float64 else tensor.float()
    if numbers.isnan().any():
        return "NaN"
    return "an infinity" if numbers.isinf().any() else None


@compiled
def _largest(words: Any, mask: Any) -> Any:
    largest = words[0] & mask
    for i in range(words.size):
        magnitude = words[i] & mask
        largest = magnitude if magnitude > largest else largest
    return largest
