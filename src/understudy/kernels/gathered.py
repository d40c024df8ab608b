"""Blocks of keys and values from the KV cache, as float32: for the exact attention on a processor.

Positions that lie side by side in the cache are read sixteen at a time, as vectors; others, and bytes of `small_keys`, number by
number, with the same result."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compiled import contracted
from .numbers import step_of
from .transpose import turned
from .vector import LONG, Code
from .weighted import LANES


def _sixteen(itemsize: int, transposed: bool) -> Any:
    """Code for use in a kernel: 16 lines of 16 numbers of `itemsize` bytes, 2 (bfloat16) or 4 (float32), as float32.

    Lines begin `pitch` bytes apart, at `source` and at `target`, where they are columns if `transposed`."""

    @intrinsic
    def copy(typing: Any, source: Any, source_pitch: Any, target: Any, target_pitch: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Code(context, builder)
            source, source_pitch, target, target_pitch = arguments
            lines = [code.floats(code.at(source, builder.mul(source_pitch, LONG(i))), itemsize) for i in range(LANES)]
            for i, line in enumerate(turned(code, lines) if transposed else lines):
                code.store(line, code.at(target, builder.mul(target_pitch, LONG(i))), 4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return copy


_rows_2, _rows_4, _columns_2, _columns_4 = (_sixteen(size, turns) for turns in (False, True) for size in (2, 4))


@contracted
def _line(slab: Any, row: int, head: int, place: int, transposed: bool, j: int, first: int, bits: Any, block: Any) -> None:
    """One key or value from its number `first` on, as column or row `j` of `block`."""
    dim = block.shape[0] if transposed else block.shape[1]
    if bits.shape[0] > 0:
        line = bits.view(np.float32)
        if slab.itemsize == 1:
            step = step_of(slab[row, head, place], dim)
            for c in range(first, dim):
                line[c] = step * np.float32(np.int8(slab[row, head, place, c]))
        else:
            for c in range(first, dim):
                bits[c] = np.uint32(slab[row, head, place, c]) << np.uint32(16)
        for c in range(first, dim):
            if transposed:
                block[c, j] = line[c]
            else:
                block[j, c] = line[c]
    else:
        for c in range(first, dim):
            if transposed:
                block[c, j] = slab[row, head, place, c]
            else:
                block[j, c] = slab[row, head, place, c]


@contracted
def _lines(slab: Any, row: int, head: int, place: int, transposed: bool, j: int, bits: Any, block: Any) -> None:
    """The 16 keys or values from `place` on, as columns or rows from `j` on of `block`."""
    dim = block.shape[0] if transposed else block.shape[1]
    source, pitch = slab[row, head, place].ctypes.data, slab.strides[2]
    whole = dim // LANES * LANES
    for c in range(0, whole, LANES):
        here = source + c * slab.itemsize
        if transposed:
            there = block[c, j:].ctypes.data
            if slab.itemsize == 2:
                _columns_2(here, pitch, there, block.strides[0])
            else:
                _columns_4(here, pitch, there, block.strides[0])
        else:
            there = block[j, c:].ctypes.data
            if slab.itemsize == 2:
                _rows_2(here, pitch, there, block.strides[0])
            else:
                _rows_4(here, pitch, there, block.strides[0])
    if whole < dim:
        for i in range(LANES):
            _line(slab, row, head, place + i, transposed, j + i, whole, bits, block)


@contracted
def gather(
    slab: Any, row: int, head: int, prefix: int, tail: Any, span: Any, transposed: bool, bits: Any, block: Any,
) -> None:  # fmt: skip
    """Keys (transposed: [d, 64]) or values ([64, d]) as float32. `span`: the block's first position, and the first and last of
    those that are put there. 16-bit slabs hold bfloat16, bytes are the lines of `small_keys`.

    Slot s lies at place s % places: a layer that looks back at a window has fewer places than the context has slots."""
    places = slab.shape[2]
    start, first, last = span
    position = first
    while position <= last:
        slot = position if position < prefix else tail[position - prefix]
        place = slot % places
        end = min(prefix - 1, last)
        if slab.itemsize > 1 and position + LANES - 1 <= end and place + LANES <= places:
            _lines(slab, row, head, place, transposed, position - start, bits, block)
            position += LANES
        else:
            _line(slab, row, head, place, transposed, position - start, 0, bits, block)
            position += 1
