"""Blocks of bfloat16 keys and values from the KV cache, in pairs, as `amx_dot` takes weights: for `attention_amx`."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compiled import contracted
from .team import uint16_at
from .transpose import turned
from .vector import HALF, LONG, WORDS, Code, Vector
from .weighted import BLOCK, LANES

# bytes from one pair of columns to the next
PAIR = 4 * BLOCK
HALVES = Vector(HALF, LANES)


@intrinsic
def _sixteen_keys(typing: Any, sources: Any, offset: Any, target: Any) -> Any:
    """32 numbers of 16 keys as 16 pairs of columns. sources: where the address of each key lies, one after the other; offset: bytes
    from its beginning."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        sources, offset, target = arguments
        begins = [code.load(code.at(sources, 8 * i), LONG, 8) for i in range(LANES)]
        lines = [code.load(code.at(begin, offset), WORDS) for begin in begins]
        for i, line in enumerate(turned(code, lines)):
            code.store(line, code.at(target, i * PAIR), 64)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def _two_values(typing: Any, first: Any, second: Any, target: Any) -> Any:
    """16 numbers of two values, as the pairs of 16 outputs."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        low, high = (code.load(address, HALVES) for address in arguments[:2])
        order = [i // 2 + i % 2 * LANES for i in range(2 * LANES)]
        code.store(code.pick(low, high, order), arguments[2], 64)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


sixteen_keys: Any = _sixteen_keys
two_values: Any = _two_values


@contracted
def locate(slab: Any, row: int, head: int, prefix: int, tail: Any, start: int, limits: Any, nothing: int, sources: Any) -> None:
    """Put in `sources` [64] the addresses of the keys, or values, of the block from position `start` on: of `nothing`, where zeros
    lie, in place of those that are not from limits[0] to limits[1].

    Slot s lies at place s % places: a layer that looks back at a window has fewer places than the context has slots."""
    places, begin = slab.shape[2], slab[row, head].ctypes.data
    for j in range(BLOCK):
        position = start + j
        if position < limits[0] or position > limits[1]:
            sources[j] = nothing
            continue
        slot = position if position < prefix else tail[position - prefix]
        sources[j] = begin + (slot if slot < places else slot % places) * slab.strides[2]


@contracted
def pair_keys(sources: Any, size: int, block: Any) -> None:
    """The 64 keys of `size` numbers (even) at `sources` in `block` [size, 64] uint16: pairs of numbers of 64 keys."""
    whole, there = size // 32 * 32, block.ctypes.data
    for j in range(0, BLOCK, LANES):
        for c in range(0, whole, 32):
            sixteen_keys(sources[j:].ctypes.data, c * 2, there + (c // 2) * PAIR + j * 4)
    flat = block.reshape(-1)
    for j in range(BLOCK if whole < size else 0):
        for c in range(whole, size):
            flat[(c // 2) * (2 * BLOCK) + j * 2 + c % 2] = np.uint16(uint16_at(sources[j] + c * 2)[0])


@contracted
def pair_values(sources: Any, size: int, block: Any) -> None:
    """The 64 values of `size` numbers at `sources` in `block` [pieces, 4096] uint16: 64 numbers at a time, pairs of values."""
    whole, there = size // LANES * LANES, block.ctypes.data
    for j in range(0, BLOCK, 2):
        for c in range(0, whole, LANES):
            target = there + (c // BLOCK) * (BLOCK * BLOCK * 2) + (j // 2) * PAIR + c % BLOCK * 4
            two_values(sources[j] + c * 2, sources[j + 1] + c * 2, target)
    for j in range(BLOCK if whole < size else 0):
        for c in range(whole, size):
            block[c // BLOCK, (j // 2) * (2 * BLOCK) + c % BLOCK * 2 + j % 2] = np.uint16(uint16_at(sources[j] + c * 2)[0])
