"""A float16 weight as a bfloat16 and its trailing bits: vector code that takes weights apart and puts them together.

As float32 a float16 has TRAILING places more than a bfloat16, and zeros behind them: subnormals too, which have no leading zeros
there. So its upper 16 bits are a bfloat16, of which a copy foretells a part as of any other (`residual_bits`), and the trailing
bits, which nothing foretells, lie beside it as codes of so many bits do (`pack`). Payloads of NaN come back as they were, too."""

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .codes import Codes
from .compiled import bits, compiled
from .float_dot import SMALLEST, words_of_halves
from .vector import BYTE, FLOATS, HALF, WORDS, Vector

# bits of a weight, and bytes of a column of 64 rows
TRAILING = 3
PITCH = 8 * TRAILING
# how far to the left they stand in a float32, and the exponents, in place, that float16 has not below and above its own
PLACE = 13
BELOW, ABOVE = 112 << 23, 224 << 23
ENDLESS = 255 << 23
QUARTER, HALVES = Vector(BYTE, 16), Vector(HALF, 16)


class _Joint(Codes):
    """Code for one column of 64 rows."""

    def __init__(self, context: Any, builder: Any) -> None:
        super().__init__(context, builder, TRAILING)

    def take_apart(self, weights: Any, brains: Any, trailing: Any) -> None:
        """The float16 at `weights` as bfloat16 and trailing bits."""
        b, found = self.b, []
        for v in range(4):
            words = words_of_halves(self, self.load(self.at(weights, 32 * v), HALVES))
            self.store(b.trunc(b.lshr(words, self.all(WORDS, 16)), HALVES), self.at(brains, 32 * v))
            own = b.and_(b.lshr(words, self.all(WORDS, PLACE)), self.all(WORDS, (1 << TRAILING) - 1))
            found.append(b.trunc(own, QUARTER))
        self.put(found, trailing)

    def words(self, brains: Any, trailing: Any | None) -> list[Any]:
        """The bits of a column's weights as float32; where `trailing` is None, those bits are zeros."""
        b, found = self.b, []
        for v in range(4):
            wide = b.zext(self.load(self.at(brains, 32 * v), HALVES), WORDS)
            found.append(b.shl(wide, self.all(WORDS, 16)))
        if trailing is None:
            return found
        own = [b.shl(b.zext(quarter, WORDS), self.all(WORDS, PLACE)) for quarter in self.column(trailing)]
        return [b.or_(word, each) for word, each in zip(found, own, strict=True)]

    def narrowed(self, words: Any) -> Any:
        """Bits of 16 float32, each a float16, as bits of float16."""
        b = self.b
        magnitude = b.and_(words, self.all(WORDS, 0x7FFFFFFF))
        sign = b.and_(b.lshr(words, self.all(WORDS, 16)), self.all(WORDS, 0x8000))
        endless = b.icmp_unsigned(">=", magnitude, self.all(WORDS, ENDLESS))
        less = b.select(endless, self.all(WORDS, ABOVE), self.all(WORDS, BELOW))
        usual = b.lshr(b.sub(magnitude, less), self.all(WORDS, PLACE))
        # floats from 0.5 on are 2 ** -24 apart, of which a small float16 is a multiple
        half = self.all(FLOATS, 0.5)
        small = b.bitcast(b.fadd(b.bitcast(magnitude, FLOATS), half), WORDS)
        small = b.sub(small, b.bitcast(half, WORDS))
        tiny = b.icmp_unsigned("<", magnitude, self.all(WORDS, SMALLEST))
        return b.trunc(b.or_(b.select(tiny, small, usual), sign), HALVES)


@intrinsic
def _take_apart(typing: Any, weights: Any, brains: Any, trailing: Any) -> Any:
    """See `_Joint.take_apart`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Joint(context, builder).take_apart(*arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def _lay_joined(typing: Any, brains: Any, trailing: Any, target: Any) -> Any:
    """The float32 at `target`, which bfloat16 at `brains` and bits at `trailing` are together: one column of 64 weights."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (brains, trailing, target) = _Joint(context, builder), arguments
        for v, words in enumerate(code.words(brains, trailing)):
            code.store(builder.bitcast(words, FLOATS), code.at(target, 64 * v), 64)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


def _narrowing(whole: bool) -> Any:
    """Code for use in a kernel: makes one column of bfloat16 at `brains` float16 where it lies, with the bits at `trailing` if
    `whole`."""

    @intrinsic
    def narrow(typing: Any, brains: Any, trailing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code, (brains, trailing) = _Joint(context, builder), arguments
            for v, words in enumerate(code.words(brains, trailing if whole else None)):
                code.store(code.narrowed(words), code.at(brains, 32 * v))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return narrow


lay_joined: Any = _lay_joined
take_apart: Any = _take_apart
_narrow_whole, _narrow = _narrowing(True), _narrowing(False)


@compiled
def narrow_columns(brains: int, trailing: int, columns: int) -> None:
    """Make `columns` columns of 64 bfloat16 at the address `brains` float16 where they lie, with the bits at the address
    `trailing`; 0: all are zeros."""
    for k in range(columns):
        if trailing != 0:
            _narrow_whole(brains + k * 128, trailing + k * PITCH)
        else:
            _narrow(brains + k * 128, trailing)


def apart(blocks: Tensor) -> tuple[Tensor, Tensor | None]:
    """Float16 `blocks` [nb, K, 64] as bfloat16 of the same shape and their trailing bits, uint8 [nb, K, PITCH]; None in their
    place where all are zeros, as those of weights that once were bfloat16 are."""
    assert blocks.dtype == torch.float16, f"weights of {blocks.dtype} have other bits"
    brains = torch.empty_like(blocks, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    trailing = torch.empty((*blocks.shape[:2], PITCH), dtype=torch.uint8)
    _apart(bits(blocks.contiguous()), bits(brains), trailing.numpy())
    return brains, trailing if bool(trailing.any()) else None


@compiled
def _apart(blocks: Any, brains: Any, trailing: Any) -> None:
    weights, upper, lower = blocks.ctypes.data, brains.ctypes.data, trailing.ctypes.data
    for k in range(np.int64(blocks.size // 64)):
        take_apart(weights + k * 128, upper + k * 128, lower + k * PITCH)
