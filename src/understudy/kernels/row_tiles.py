"""Integer dot products of any number of rows with a group of columns, a tile of rows after the other.

The group's codes stay in the first cache from one tile to the next: as they are packed, or unpacked where that is faster."""

from typing import Any

from .compiled import FIRST, part
from .dot import group_dot
from .unpacked_dot import SCALES, applies, in_order, rows_dot, unpack_group

# how many bytes before they are used memory is asked for codes
CODES_AHEAD = 4096
# so many rows take codes as they are packed
FEW = 2


def tiles_dot(bits: int) -> Any:
    """For kernels: `group_dot` for any number of rows, `count`, which lie one after the other as do their `steps` and `out`; `room`
    is that of `unpack_group`. Outputs are in order after the `last` group.

    While the first rows are multiplied, memory is asked for the codes that come next, a few bytes with each few columns: asked for
    all at once they would keep from coming what these rows need."""
    return part(_unpacked(bits) if applies(bits) else _packed(bits), bits)


def _unpacked(bits: int) -> Any:
    """`tiles_dot` where more than FEW rows have a group's codes unpacked for them."""
    alone, both = (group_dot(bits, rows, ahead=CODES_AHEAD) for rows in (1, FEW))
    unpack, tiles, put_in_order = unpack_group(bits, CODES_AHEAD), _tiles(rows_dot, bits), in_order(bits)

    def add_group(codes: int, x: int, columns: int, scales: int, steps: int, out: int, count: int, room: int, last: bool) -> None:
        if count == 1:
            alone(codes, x, columns, columns, scales, steps, out)
        elif count == FEW:
            both(codes, x, columns, columns, scales, steps, out)
        else:
            unpack(codes, columns, scales, room)
            tiles(room, x, columns, room + SCALES, steps, out, FIRST, count)
            if last:
                put_in_order(out, count)

    return add_group


def _packed(bits: int) -> Any:
    """`tiles_dot` where each tile of rows takes the codes as they are packed."""
    one, two, four = (group_dot(bits, rows, ahead=CODES_AHEAD) for rows in (1, 2, 4))
    others = _tiles(group_dot, bits)

    def add_group(codes: int, x: int, columns: int, scales: int, steps: int, out: int, count: int, room: int, last: bool) -> None:
        first = 4 if count >= 4 else 2 if count >= 2 else 1
        if count >= 4:
            four(codes, x, columns, columns, scales, steps, out)
        elif count >= 2:
            two(codes, x, columns, columns, scales, steps, out)
        else:
            one(codes, x, columns, columns, scales, steps, out)
        others(codes, x, columns, scales, steps, out, first, count)

    return add_group


def _tiles(dot: Any, bits: int) -> Any:
    """For kernels: `dot`, `group_dot` or `rows_dot`, for rows r to count - 1."""
    one, two, four = (dot(bits, rows) for rows in (1, 2, 4))

    def add_tiles(codes: int, x: int, columns: int, scales: int, steps: int, out: int, r: int, count: int) -> None:
        while r < count:
            if count - r >= 4:
                four(codes, x + r * columns, columns, columns, scales, steps + r * 8, out + r * 256)
                r += 4
            elif count - r >= 2:
                two(codes, x + r * columns, columns, columns, scales, steps + r * 8, out + r * 256)
                r += 2
            else:
                one(codes, x + r * columns, columns, columns, scales, steps + r * 8, out + r * 256)
                r += 1

    return part(add_tiles, bits)
