"""Integer dot products of any number of rows with a group of columns, a tile of rows after the other.

The group's codes stay in the first cache from one tile to the next: as they are packed, or unpacked where that is faster."""

from typing import Any

import numpy as np

from .compiled import part
from .dot import group_dot
from .unpacked_dot import SCALES, applies, in_order, rows_dot, unpack_group

# how many bytes before they are used memory is asked for codes
CODES_AHEAD = 4096
# so many rows take codes as they are packed
FEW = 2
# The first row. It is no literal, for which numba would compile what it is given to once more.
FIRST: Any = np.int64(0)


def tiles_dot(bits: int) -> Any:
    """For kernels: `group_dot` for any number of rows, `count`; `steps` and `out` of the rows lie one after the other, `room` is
    that of `unpack_group`. After all groups, `tiles_in_order` ends it.

    While the first rows are multiplied, memory is asked for the codes that come next, a few bytes with each few columns: asked for
    all at once they would keep from coming what these rows need."""
    return part(_unpacked(bits) if applies(bits) else _packed(bits), bits)


def tiles_in_order(bits: int) -> Any:
    """For kernels: put the sums of `count` rows, from `out` on, in the order of outputs."""
    put = in_order(bits) if applies(bits) else None

    def in_place(out: int, count: int) -> None:
        if put is not None and count > FEW:
            put(out, count)

    return part(in_place, bits)


def _unpacked(bits: int) -> Any:
    """`tiles_dot` where more than FEW rows have a group's codes unpacked for them."""
    alone, both = (group_dot(bits, rows, ahead=CODES_AHEAD) for rows in (1, FEW))
    unpack, tiles = unpack_group(bits, CODES_AHEAD), _tiles(rows_dot, bits)

    def add_group(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int, count: int, room: int) -> None:
        if count == 1:
            alone(codes, x, stride, columns, scales, steps, out)
        elif count == FEW:
            both(codes, x, stride, columns, scales, steps, out)
        else:
            unpack(codes, columns, scales, room)
            tiles(room, x, stride, columns, room + SCALES, steps, out, FIRST, count)

    return add_group


def _packed(bits: int) -> Any:
    """`tiles_dot` where each tile of rows takes the codes as they are packed."""
    one, two, four = (group_dot(bits, rows, ahead=CODES_AHEAD) for rows in (1, 2, 4))
    others = _tiles(group_dot, bits)

    def add_group(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int, count: int, room: int) -> None:
        first = 4 if count >= 4 else 2 if count >= 2 else 1
        if count >= 4:
            four(codes, x, stride, columns, scales, steps, out)
        elif count >= 2:
            two(codes, x, stride, columns, scales, steps, out)
        else:
            one(codes, x, stride, columns, scales, steps, out)
        others(codes, x, stride, columns, scales, steps, out, first, count)

    return add_group


def _tiles(dot: Any, bits: int) -> Any:
    """For kernels: `dot`, `group_dot` or `rows_dot`, for rows r to count - 1."""
    one, two, four = (dot(bits, rows) for rows in (1, 2, 4))

    def add_tiles(
        codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int, r: int, count: int
    ) -> None:
        while r < count:
            if count - r >= 4:
                four(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 4
            elif count - r >= 2:
                two(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 2
            else:
                one(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 1

    return part(add_tiles, bits)
