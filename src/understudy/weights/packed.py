"""Weights of codes and scales: what they are, row by row, and the codes again.

The weights are what transformers makes of a checkpoint with `dequantize=True`, or multiplies by where it has no kernel of its own,
bit for bit: each code's value, less its zero point where there is one, times its scale in float32, rounded to the type that the
config names. Codes can be told from them, so a Store holds the weights and the scales, and `export` writes the files as they were
published. Nothing here reads more codes than those of the rows that are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.pack import unusable_value
from .files import read_columns, read_tensor
from .shards import TensorInfo
from .words import CENTRE, GPTQ, points, published, rows_of, window

FP8, MXFP4, INT4 = "fp8", "mxfp4", "int4"
# The types of the tensors that hold codes of four bits, which differ in what codes stand for.
FOUR_BITS = {torch.uint8: MXFP4, torch.int32: INT4}
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
    # `words.GPTQ` or `words.AWQ`, where codes stand as those have them; empty: row by row.
    order: str = ""
    # Zero points of codes of four bits; None: CENTRE. And by how much they are more than what is published.
    zeros: TensorInfo | None = None
    more: int = 0
    # Of each column, which of a row's scales it has; None: `block` says. And whether they may be others than `block` says.
    groups: TensorInfo | None = None
    scattered: bool = False
    # The types that scales, and that weights, are rounded to one after another before they are the weight's own.
    scale_types: tuple[torch.dtype, ...] = ()
    on_the_way: tuple[torch.dtype, ...] = ()

    @property
    def pairs(self) -> bool:
        """Does a byte hold two codes of four bits, the lower one first?"""
        return self.codes.dtype in FOUR_BITS

    @property
    def form(self) -> str:
        """FP8, MXFP4 or INT4."""
        return FOUR_BITS.get(self.codes.dtype, FP8)

    @property
    def streams_as(self) -> str:
        """The form for which a codec may be asked; empty: what it would need is not known."""
        return "" if self.scattered else self.form

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors that a weight is made of: codes, scales, and what there is besides."""
        return (self.codes, self.scales, *(each for each in (self.zeros, self.groups) if each is not None))

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of the weight but for its columns."""
        if self.order:
            return (self.scales.shape[-1],)
        return self.codes.shape[:-2] if self.form == MXFP4 else self.codes.shape[:-1]

    @property
    def row_bytes(self) -> int:
        """Bytes of the codes of a row."""
        if self.order:
            return self.codes.shape[0] * (8 if self.order == GPTQ else 1) // 2
        one = self.codes.shape[-1] * self.codes.dtype.itemsize
        return one * self.codes.shape[-2] if self.form == MXFP4 else one

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return self.row_bytes * 2 if self.pairs else self.row_bytes

    def grid(self, first: int, count: int) -> tuple[int, int, int]:
        """The rows of the grid of scales that rows first.. of the weight have: the first one, how many, and scales in each."""
        start = first // self.block[0]
        return start, -(-(first + count) // self.block[0]) - start, -(-self.columns // self.block[1])

    def values(self, codes: Tensor, scales: Tensor, first: int, dtype: torch.dtype, beside: ZerosAndGroups | None = None) -> Tensor:
        """Rows [n, columns] of the weight from row `first` on, of their codes, of the rows of scales that `grid` names, and of what
        there is `beside` them."""
        table = _pairs_of_values(self.form) if self.pairs else _values(self.codes.dtype)
        found = table.index_select(0, codes.reshape(-1).to(torch.int32)).view(torch.float32).view(len(codes), self.columns)
        if beside is not None and beside.zeros is not None:
            self._each(found, beside.zeros.to(torch.float32), torch.sub, beside)
        self._each(found, self.factors_of(scales, first, len(found)), torch.mul, beside)
        for kind in self.on_the_way:
            found = found.to(kind)
        return found.to(dtype)

    def codes_of(self, rows: Tensor, scales: Tensor, first: int, beside: ZerosAndGroups | None = None) -> Tensor:
        """The codes [n, bytes] of rows of the weight from row `first` on: the opposite of `values`."""
        own = self.factors_of(scales, first, len(rows))
        # where all scales of a block are 0, its numbers tell of their codes the sign alone
        divisors = torch.where(own == 0, 1.0, own)
        found = self._each(rows.to(torch.float32, copy=True), divisors, torch.div, beside)
        if not self.pairs:
            return found.to(self.codes.dtype).view(torch.uint8)
        if self.form == INT4:
            found.round_()
            if beside is not None and beside.zeros is not None:
                self._each(found, beside.zeros.to(torch.float32), torch.add, beside)
            codes = found.add_(CENTRE).clamp_(0, 15).to(torch.uint8).view(len(rows), -1, 2)
        else:
            steps = found.abs().mul_(2).clamp_(0, 2 * _FP4[-1]).to(torch.int32)
            codes = _code_of_steps().index_select(0, steps.view(-1)).view(len(rows), -1, 2)
            codes |= torch.signbit(found).view(codes.shape).to(torch.uint8) << 3
        return codes[..., 0] | codes[..., 1] << 4

    def factors_of(self, scales: Tensor, first: int, count: int) -> Tensor:
        """What rows first.. of the weight are multiplied by, float32 [count, any], of the rows of scales that `grid` names."""
        own, high = factors(scales), self.block[0]
        for kind in self.scale_types:
            own = own.to(kind)
        own = own.to(torch.float32)
        return own.index_select(0, torch.arange(first, first + count) // high - first // high) if high > 1 else own

    def _each(self, rows: Tensor, own: Tensor, change: Any, beside: ZerosAndGroups | None) -> Tensor:
        """`rows` in float32, each number changed by that of its row and group in `own`, in place."""
        wide = self.block[1]
        if beside is not None and beside.groups is not None:
            change(rows, own.index_select(1, beside.groups), out=rows)
        elif self.columns % wide == 0:
            blocks = rows.view(len(rows), -1, wide)
            change(blocks, own[:, :, None], out=blocks)
        else:
            change(rows, own.repeat_interleave(wide, 1)[:, : self.columns], out=rows)
        return rows


@dataclass(frozen=True)
class ZerosAndGroups:
    """What some rows of a weight in codes of four bits have beside codes and scales."""

    # int8 [rows, groups]: zero points less CENTRE; None: there are none
    zeros: Tensor | None = None
    # int32 [columns]: the group of each; None: they lie side by side
    groups: Tensor | None = None


def beside(packed: Packed, read: Callable[[TensorInfo], Tensor], first: int, count: int) -> ZerosAndGroups | None:
    """What rows first.. have, whose tensors `read` reads; None where there is none."""
    if packed.zeros is None and packed.groups is None:
        return None
    zeros = None if packed.zeros is None else points(packed.order, read(packed.zeros), first, count, packed.more)
    if packed.groups is None:
        return ZerosAndGroups(zeros)
    groups, own = read(packed.groups), packed.scales.shape[0]
    if not 0 <= int(groups.min()) <= int(groups.max()) < own:
        raise CheckpointError(f"{packed.groups.file}: {packed.groups.name} names groups beyond the {own} there are. Get it again.")
    return ZerosAndGroups(zeros, groups)


def scales_of(packed: Packed, scales: Tensor, first: int, count: int) -> Tensor:
    """Of all `scales` of a weight, the rows of the grid that rows first.. have."""
    if packed.order:
        return scales[:, first : first + count].T
    start, high, wide = packed.grid(first, count)
    return scales.view(-1, wide)[start : start + high]


def as_published(packed: Packed, codes: Tensor) -> Tensor:
    """The codes [n, bytes] of rows of the weight, or of all of them where they do not stand row by row, as files have them."""
    return published(packed.order, codes) if packed.order else codes


def read_rows(info: TensorInfo, first: int, count: int) -> Tensor:
    """Rows first.. of a weight that is published as codes; only theirs, and their scales, are read.

    Raises CheckpointError where the codes could not be told from them again."""
    packed = info.packed
    assert packed is not None and not packed.fault, f"{info.name} is not packed, or cannot be used"
    rows = torch.empty(count, packed.columns, dtype=info.dtype)
    more = beside(packed, _read, first, count)
    scales = _scales_of(packed, first, count) if packed.order else None
    codes = _turned_codes(packed, first, count) if packed.order else None
    # a few at a time, in little room
    step = max(TOGETHER // packed.columns, 1)
    for start in range(0, count, step):
        few = min(step, count - start)
        own = _codes(packed, first + start, few) if codes is None else codes[start : start + few]
        part = more if more is None or more.zeros is None else replace(more, zeros=more.zeros[start : start + few])
        own_scales = _scales_of(packed, first + start, few) if scales is None else scales[start : start + few]
        rows[start : start + few] = _few_rows(info, own, own_scales, first + start, part)
    return rows


def read_factors(info: TensorInfo, first: int, count: int) -> tuple[Tensor, int]:
    """What the codes of rows first.. of a weight are multiplied by, float32 [count, any], and for how many columns each holds."""
    assert info.packed is not None, f"{info.name} is not packed"
    return info.packed.factors_of(_scales_of(info.packed, first, count), first, count), info.packed.block[1]


def _scales_of(packed: Packed, first: int, count: int) -> Tensor:
    if packed.order:
        return scales_of(packed, _read(packed.scales), first, count)
    start, high, wide = packed.grid(first, count)
    place = packed.scales.offset + start * wide * packed.scales.dtype.itemsize
    return read_tensor(packed.scales.file, place, packed.scales.dtype, (high, wide), CheckpointError)


def _read(info: TensorInfo) -> Tensor:
    return read_tensor(info.file, info.offset, info.dtype, info.shape, CheckpointError)


def _codes(packed: Packed, first: int, count: int) -> Tensor:
    place = packed.codes.offset + first * packed.row_bytes
    return read_tensor(packed.codes.file, place, torch.uint8, (count, packed.row_bytes), CheckpointError)


def _turned_codes(packed: Packed, first: int, count: int) -> Tensor:
    """The codes of rows first.. of a weight whose codes do not stand row by row."""
    codes, (lines, width) = packed.codes, packed.codes.shape
    columns = window(packed.order, first, count)
    words = read_columns(codes.file, codes.offset, codes.dtype, (lines, width), columns, CheckpointError)
    return rows_of(packed.order, words, first, count)


def _few_rows(info: TensorInfo, codes: Tensor, scales: Tensor, first: int, more: ZerosAndGroups | None) -> Tensor:
    packed = info.packed
    assert packed is not None
    rows = packed.values(codes, scales, first, info.dtype, more)
    # numbers that are none are refused by whoever looks at weights
    if unusable_value(rows) is None and not torch.equal(packed.codes_of(rows, scales, first, more), codes):
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


@cache
def _values(dtype: torch.dtype) -> Tensor:
    """The value of each byte of a type of eight bits."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)


@cache
def _pairs_of_values(form: str) -> Tensor:
    """The values of both codes in each byte, as the bytes of one number."""
    named = [*_FP4, *(-value for value in _FP4)] if form == MXFP4 else range(-8, 8)
    # where a model is built meanwhile, torch's usual type is another
    values = torch.tensor(named, dtype=torch.float32)
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
    return torch.tensor([math.ldexp(1.0, code - 127) for code in range(256)], dtype=torch.float32)
