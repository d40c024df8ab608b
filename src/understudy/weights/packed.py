"""Weights that are published quantised, as codes and scales: what the model's weights are, and the published codes again.

The weights are what transformers makes of a checkpoint with `dequantize=True`, bit for bit: each code's value times its scale in
float32, rounded once to the type that the config names. Codes can be told from them, so a Store holds the weights and the scales,
and `export` writes the files as they were published. Nothing here reads more than the rows that are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.pack import unusable_value
from .files import read_tensor
from .shards import TensorInfo

FP8, MXFP4 = "fp8", "mxfp4"
# What the types of eight bits are called in transformers' `quantization_config`.
_SETTINGS, _METHOD = "quantization_config", "quant_method"
# In FP8, a weight X.weight has its scales in one of these beside it, and that of its inputs, which no weight depends on, in others.
_WEIGHT, _BESIDE, _OF_INPUTS = ".weight", (".weight_scale_inv", ".scale", ".qscale_weight"), (".activation_scale", ".input_scale")
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
# In MXFP4, a weight X is X_blocks, 16 bytes of two codes each, and X_scales, an exponent for each of them.
_BLOCKS, _SCALES, _PAIRS = "_blocks", "_scales", 16
_SCALE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float8_e8m0fnu)
# Numbers that are made at a time.
TOGETHER = 1 << 18
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Packed:
    """How a weight is published: its codes, one a byte or two, and its scales."""

    codes: TensorInfo
    scales: TensorInfo
    # Rows and columns of the weight that have one scale.
    block: tuple[int, int] = (1, 1)
    # Why it cannot be used; empty: it can.
    fault: str = ""

    @property
    def pairs(self) -> bool:
        """Does a byte hold two codes of four bits, the lower one first?"""
        return self.codes.dtype == torch.uint8

    @property
    def form(self) -> str:
        """FP8 or MXFP4."""
        return MXFP4 if self.pairs else FP8

    @property
    def row_bytes(self) -> int:
        """Bytes of the codes of a row."""
        return self.codes.shape[-1] * self.codes.shape[-2] if self.pairs else self.codes.shape[-1]

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return self.row_bytes * 2 if self.pairs else self.row_bytes

    def grid(self, first: int, count: int) -> tuple[int, int, int]:
        """The rows of the grid of scales that rows first.. of the weight have: the first one, how many, and scales in each."""
        start = first // self.block[0]
        return start, -(-(first + count) // self.block[0]) - start, -(-self.columns // self.block[1])

    def values(self, codes: Tensor, scales: Tensor, first: int, dtype: torch.dtype) -> Tensor:
        """Rows [n, columns] of the weight from row `first` on, of their codes and of the rows of scales that `grid` names."""
        table = _pairs_of_values() if self.pairs else _values(self.codes.dtype)
        found = table.index_select(0, codes.reshape(-1).to(torch.int32)).view(torch.float32).view(len(codes), self.columns)
        return self._each(found, scales, first, torch.mul).to(dtype)

    def codes_of(self, rows: Tensor, scales: Tensor, first: int) -> Tensor:
        """The codes [n, bytes] of rows of the weight from row `first` on: the opposite of `values`."""
        # where all scales of a block are 0, its numbers tell of their codes the sign alone
        divisors = torch.where(factors(scales) == 0, 1.0, factors(scales))
        found = self._each(rows.to(torch.float32, copy=True), divisors, first, torch.div)
        if not self.pairs:
            return found.to(self.codes.dtype).view(torch.uint8)
        steps = found.abs().mul_(2).clamp_(0, 2 * _FP4[-1]).to(torch.int32)
        codes = _code_of_steps().index_select(0, steps.view(-1)).view(len(rows), -1, 2)
        codes |= torch.signbit(found).view(codes.shape).to(torch.uint8) << 3
        return codes[..., 0] | codes[..., 1] << 4

    def _each(self, rows: Tensor, scales: Tensor, first: int, change: Any) -> Tensor:
        """`rows` in float32, each number changed by its scale, in place."""
        (high, wide), start = self.block, first // self.block[0]
        own = factors(scales)
        if high > 1:
            own = own.index_select(0, torch.arange(first, first + len(rows)) // high - start)
        if self.columns % wide == 0:
            blocks = rows.view(len(rows), -1, wide)
            change(blocks, own[:, :, None], out=blocks)
        else:
            change(rows, own.repeat_interleave(wide, 1)[:, : self.columns], out=rows)
        return rows


def read_rows(info: TensorInfo, first: int, count: int) -> Tensor:
    """Rows first.. of a weight that is published as codes; only theirs, and their scales, are read.

    Raises CheckpointError where the codes could not be told from them again."""
    packed = info.packed
    assert packed is not None and not packed.fault, f"{info.name} is not packed, or cannot be used"
    rows = torch.empty(count, packed.columns, dtype=info.dtype)
    # a few at a time, in little room
    step = max(TOGETHER // packed.columns, 1)
    for start in range(0, count, step):
        few = min(step, count - start)
        rows[start : start + few] = _few_rows(info, packed, first + start, few)
    return rows


def _few_rows(info: TensorInfo, packed: Packed, first: int, count: int) -> Tensor:
    place = packed.codes.offset + first * packed.row_bytes
    codes = read_tensor(packed.codes.file, place, torch.uint8, (count, packed.row_bytes), CheckpointError)
    start, high, wide = packed.grid(first, count)
    place = packed.scales.offset + start * wide * packed.scales.dtype.itemsize
    scales = read_tensor(packed.scales.file, place, packed.scales.dtype, (high, wide), CheckpointError)
    rows = packed.values(codes, scales, first, info.dtype)
    # numbers that are none are refused by whoever looks at weights
    if unusable_value(rows) is None and not torch.equal(packed.codes_of(rows, scales, first), codes):
        raise CheckpointError(
            f"{info.file}: {packed.codes.name} holds numbers that {str(info.dtype).removeprefix('torch.')} cannot tell apart, or a"
            f" scale of 0 ({packed.scales.name}): the checkpoint is broken, get it again."
        )
    return rows


def factors(scales: Tensor) -> Tensor:
    """What scales multiply by, in float32: bytes are exponents of 2, 127 more than they are."""
    if scales.dtype == torch.uint8:
        return _powers().index_select(0, scales.reshape(-1).to(torch.int32)).view(scales.shape)
    return scales.to(torch.float32)


def form_of(config: Mapping[str, Any]) -> str:
    """FP8 or MXFP4 where a config.json says that the weights are published so; else empty."""
    method = str(settings_of(config).get(_METHOD, "")).lower()
    return method if method in (FP8, MXFP4) else ""


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json, or that of the text model in it, says of how its weights are quantised; empty: nothing."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    return next((found for place in places if isinstance(found := place.get(_SETTINGS), Mapping) and found), {})


def in_words(config: Mapping[str, Any]) -> str:
    """How the weights are published by a config.json, for people; empty: as they are."""
    form, block = form_of(config), settings_of(config).get("weight_block_size")
    blocks = f" in blocks of {block[0]} x {block[1]}" if form == FP8 and isinstance(block, list) and len(block) == 2 else ""
    return form.upper() + blocks


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The type of the weights that codes are made to: the one that a config.json names, else bfloat16."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    named = next((str(place[key]) for place in places for key in ("dtype", "torch_dtype") if place.get(key)), "")
    found = getattr(torch, named.removeprefix("torch."), None)
    return found if found in (torch.float16, torch.float32) else torch.bfloat16


def unpacked(config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The tensors of the files, `stored`, as the model of a config.json has them: one weight in the place of codes and scales."""
    form = form_of(config)
    if not form:
        return stored
    dtype, wanted = dtype_of(config), settings_of(config).get("weight_block_size")
    found: dict[str, TensorInfo] = {}
    beside: set[str] = set()
    for info in stored.values():
        path = info.name.removesuffix(_WEIGHT if form == FP8 else _BLOCKS)
        if path == info.name or info.dtype not in (_CODES if form == FP8 else (torch.uint8,)):
            found[info.name] = info
            continue
        names = [path + end for end in (_BESIDE if form == FP8 else (_SCALES,))]
        scales = next((stored[name] for name in names if name in stored), None)
        beside |= {path + end for end in _OF_INPUTS} if form == FP8 else set()
        beside |= set() if scales is None else {scales.name}
        if scales is None:
            packed = Packed(info, info, fault=f"has no scales: {names[0]!r} is missing. Get the model again")
        else:
            packed = _fp8(info, scales, wanted) if form == FP8 else _mxfp4(info, scales)
        name = info.name if form == FP8 else path
        shape = info.shape if form == FP8 else (*info.shape[:-2], math.prod(info.shape[-2:]) * 2)
        nbytes = math.prod(shape) * dtype.itemsize
        found[name] = TensorInfo(name, dtype, shape, info.file, info.offset, nbytes, packed=packed)
    return {name: info for name, info in found.items() if name not in beside}


def foretold(info: TensorInfo, shape: tuple[int, int, int]) -> TensorInfo:
    """The matrices [experts, out, in] of this `shape`, of which `info` is foretold, as they are published in MXFP4: nothing of them
    can be read."""
    *rows, columns = shape
    groups = (*rows, columns // (2 * _PAIRS))
    codes = replace(info, name=info.name + _BLOCKS, dtype=torch.uint8, shape=(*groups, _PAIRS), nbytes=math.prod(groups) * _PAIRS)
    scales = replace(codes, name=info.name + _SCALES, shape=groups, nbytes=math.prod(groups))
    return replace(info, shape=shape, packed=_mxfp4(codes, scales))


def _mxfp4(codes: TensorInfo, scales: TensorInfo) -> Packed:
    if len(codes.shape) < 3 or codes.shape[-1] != _PAIRS:
        what = f"is {list(codes.shape)}, where blocks of {_PAIRS} bytes are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    if scales.shape != codes.shape[:-1] or scales.dtype != torch.uint8:
        what = f"has scales {list(scales.shape)} of {scales.kind}, where {list(codes.shape[:-1])} of uint8 are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    return Packed(codes, scales, (1, 2 * _PAIRS))


def _fp8(codes: TensorInfo, scales: TensorInfo, wanted: Any) -> Packed:
    found = Packed(codes, scales)
    shape = scales.shape if len(scales.shape) == 2 else (1, 1)
    odd = f"is {list(codes.shape)} with scales {list(scales.shape)} of {scales.kind}, which do not fit. Get the model again"
    if len(codes.shape) != 2 or math.prod(scales.shape) != math.prod(shape) or scales.dtype not in _SCALE_TYPES or 0 in shape:
        return replace(found, fault=odd)
    sizes = wanted if isinstance(wanted, list) and len(wanted) == 2 else (None, None)
    block = []
    for length, count, size in zip(codes.shape, shape, sizes, strict=True):
        even = length // count if length % count == 0 else None
        # As published: blocks of the config's size, the last one cut off. transformers takes even ones.
        cut = size if isinstance(size, int) and size > 0 and -(-length // size) == count else None
        if count > 1 and even and cut and even != cut:
            why = f"in blocks of {cut}, and transformers would take blocks of {even}: this is not supported"
            return replace(found, fault=f"is {list(codes.shape)} {why}")
        if (chosen := even or cut) is None:
            return replace(found, fault=odd)
        block.append(chosen)
    return replace(found, block=(block[0], block[1]))


@cache
def _values(dtype: torch.dtype) -> Tensor:
    """The value of each byte of a type of eight bits."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)


@cache
def _pairs_of_values() -> Tensor:
    """The values of both codes in each byte, as the bytes of one number."""
    values = torch.tensor([*_FP4, *(-value for value in _FP4)])
    codes = torch.arange(256)
    return torch.stack([values[codes & 15], values[codes >> 4]], 1).view(torch.int64).view(-1)


@cache
def _code_of_steps() -> Tensor:
    """The code without its sign of each whole number of halves that has one."""
    codes = torch.zeros(int(2 * _FP4[-1]) + 1, dtype=torch.uint8)
    for code, value in enumerate(_FP4):
        codes[int(2 * value)] = code
    return codes


@cache
def _powers() -> Tensor:
    """What each exponent multiplies by. transformers gets infinity from the last one, which stands for no number."""
    return torch.tensor([math.ldexp(1.0, code - 127) for code in range(256)])
