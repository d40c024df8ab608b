"""The rows of a product as it reads them: columns that are multiplied at once together, those of all rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic
from numba.np import numpy_support
from torch import Tensor

from .compiled import compiled
from .team import uint16_at

carray: Any = numpy_support.carray
cgutils: Any = numba_cgutils


def cut_rows(tiles: Sequence[Tensor], rows: int, height: int, width: int) -> Tensor:
    """The first `rows` rows of `tiles` [any, K], bfloat16 or float32, one tile after another, as [runs of columns, height, width],
    so that what is multiplied at once lies together. Beyond `rows` there are zeros, and beyond K any numbers."""
    columns, kind = tiles[0].shape[1], tiles[0].dtype
    tiles = [tile if tile.stride(1) == 1 else tile.contiguous() for tile in tiles]
    assert all(tile.dtype == kind and tile.shape[1] == columns for tile in tiles)
    lie = [(tile.data_ptr(), tile.stride(0) * kind.itemsize, tile.shape[0]) for tile in tiles]
    assert sum(there for _, _, there in lie) >= rows, "fewer rows than are multiplied"
    out = torch.empty((-(-columns // width), height, width), dtype=kind)
    # in numbers of two bytes
    each = kind.itemsize // 2
    _cut(np.array(lie), columns * each, rows, out.data_ptr(), height, width * each)
    return out


@intrinsic
def _copy(typing: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` bytes from address to address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        where, whence = (builder.inttoptr(address, byte) for address in arguments[:2])
        cgutils.raw_memcpy(builder, where, whence, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


copy: Any = _copy


@compiled
def _cut(tiles: Any, columns: int, rows: int, place: int, height: int, width: int) -> None:
    """tiles [any, 3]: where each lies, bytes from row to row, and how many rows it has; place: where results go."""
    runs = (columns + width - 1) // width
    row = 0
    for tile in range(len(tiles)):
        for r in range(min(tiles[tile, 2], rows - row)):
            source = tiles[tile, 0] + r * tiles[tile, 1]
            for run in range(runs):
                first = run * width
                copy(place + ((run * height + row) * width) * 2, source + first * 2, min(width, columns - first) * 2)
            row += 1
    for run in range(runs):
        beyond = carray(uint16_at(place + (run * height + rows) * width * 2), (height - rows) * width)
        for k in range(len(beyond)):
            beyond[k] = 0
