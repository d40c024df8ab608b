"""Transposing a square tile of n rows: element (i, j) goes to (j, i). Vector code, for elements of 1, 2 and 4 bytes.

Interleaving row i with row i + n / 2, element by element, log2 n times over, transposes the tile."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .vector import LONG, Code, Vector

# rows and columns of a tile, by bytes of an element
SIDE = {1: 32, 2: 32, 4: 16}


def turned(code: Code, rows: Sequence[Any]) -> list[Any]:
    """The columns of n vectors of n elements."""
    lines, side = list(rows), len(rows)
    first = [i // 2 + i % 2 * side for i in range(side)]
    second = [i + side // 2 for i in first]
    for _ in range(side.bit_length() - 1):
        pairs = [(lines[i], lines[i + side // 2]) for i in range(side // 2)]
        lines = [code.pick(a, b, order) for a, b in pairs for order in (first, second)]
    return lines


def transposer(size: int) -> Any:
    """Code for use in a kernel: the tile at `source`, transposed, goes to `target`; rows lie `..._pitch` bytes
    apart."""
    side = SIDE[size]
    row = Vector(ir.IntType(8 * size), side)

    @intrinsic
    def transpose(typing: Any, source: Any, source_pitch: Any, target: Any, target_pitch: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Code(context, builder)
            source, source_pitch, target, target_pitch = arguments

            def place(start: Any, pitch: Any, i: int) -> Any:
                return code.at(start, builder.mul(pitch, LONG(i)))

            lines = [code.load(place(source, source_pitch, i), row) for i in range(side)]
            for i, line in enumerate(turned(code, lines)):
                code.store(line, place(target, target_pitch, i))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return transpose


transpose_1: Any = transposer(1)
transpose_2: Any = transposer(2)
transpose_4: Any = transposer(4)
