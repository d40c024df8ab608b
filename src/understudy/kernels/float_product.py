"""Float32 rows times exact weights: the kernel of `exact_product.BlockProduct` for models that compute in float32, whatever type
their weights are kept in. A few columns at a time become float32 in the processor's cache, and multiply all rows there."""

from typing import Any

import numpy as np
from numba.np import numpy_support

from .compiled import compiled
from .descriptor import exact_operand, exact_run, residual_blocks
from .float_dot import LINE, MOST, float_dot, give_floats, lay_brains, lay_halves
from .residual import rebuild
from .taken_blocks import adding_rows, taken
from .team import float32_at
from .trailing import PITCH, lay_joined

carray: Any = numpy_support.carray
_add = adding_rows("float32", MOST, *map(float_dot, (1, 2, 4, MOST)))


@compiled
def work(argument: Any) -> None:
    """Multiply by blocks until none is left. Runs on every thread of the team with the same argument."""
    run = exact_run(argument)
    # sums [height, 64], weights as they are multiplied [width, LINE bytes], and those of 16 bits before that
    kept = np.empty(run.height * 64 + run.width * (LINE + 128) // 4 + 32, np.float32)
    sums = (kept.ctypes.data + 63) // 64 * 64
    laid = sums + run.height * 256
    while True:
        place, b = taken(argument, run)
        if place == 0:
            break
        operand = exact_operand(place)
        carray(float32_at(sums), run.height * 64)[:] = np.float32(0)
        for k in range(0, run.columns, run.width):
            width = min(run.columns - k, run.width)
            _add(run, operand, b, k, width, _make(operand, b, k, width, laid, laid + run.width * LINE), sums)
        for r in range(run.rows):
            give_floats(sums + r * 256, run.out + operand.out + r * run.out_stride + b * 256)
    # numba drops what is not named any more
    kept[0] = np.float32(0)


@compiled
def _make(operand: Any, b: int, k: int, width: int, laid: int, rebuilt: int) -> int:
    """The address of `width` columns of block b, from k on, as float32: where they lie, or `laid`. `rebuilt` is room for them
    before that."""
    blocks, line = residual_blocks(operand.blocks), operand.line
    source = rebuilt if line < LINE else laid
    if operand.plain != 0:
        source = operand.plain + (b * blocks.columns + k) * line
    else:
        group = blocks.group
        for g in range(k // group, (k + width) // group):
            rebuild(blocks, b, g, source + (g * group - k) * line)
    if line == LINE:
        return source
    if blocks.trailing != 0:
        trailing = blocks.trailing + (b * blocks.columns + k) * PITCH
        for column in range(width):
            lay_joined(source + column * line, trailing + column * PITCH, laid + column * LINE)
    elif operand.halves != 0:
        for column in range(width):
            lay_halves(source + column * line, laid + column * LINE)
    else:
        for column in range(width):
            lay_brains(source + column * line, laid + column * LINE)
    return laid
