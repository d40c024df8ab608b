"""What kernels that multiply by blocks of exact weights have in common: who takes which block, and what is asked of memory."""

from typing import Any

from .compiled import FIRST, compiled, part
from .descriptor import OPERAND_BYTES, exact_operand, residual_blocks
from .team import take
from .vector import prefetch

# For kernels: adds products of columns to the sums of rows; see `bfdot.columns_dot`.
Dot = Any


@compiled
def taken(argument: int, run: Any) -> Any:
    """A block that no thread has: the address of its operand (0: none is left), and its number there."""
    b, place = take(argument), run.operands
    end = place + run.count * OPERAND_BYTES
    while place < end and b >= residual_blocks(exact_operand(place).blocks).count:
        b -= residual_blocks(exact_operand(place).blocks).count
        place += OPERAND_BYTES
    return place if place < end else 0, b


@compiled
def fetch_ahead(operand: Any, b: int, k: int, width: int, r: int, count: int, rows: int) -> None:
    """Ask memory for a share of the `width` columns from k on, where they lie as they are: that of rows r to r + count - 1 of
    `rows`. What others are made of is asked for where they are rebuilt."""
    columns = residual_blocks(operand.blocks).columns
    width = min(columns - k, width)
    if operand.plain != 0 and width > 0:
        _fetch(operand.plain + (b * columns + k) * operand.line, width * operand.line // 64, r, count, rows)


@compiled
def _fetch(start: int, lines: int, r: int, count: int, rows: int) -> None:
    """Ask memory for the share of rows r to r + count - 1 of `rows` in the `lines` lines of 64 bytes from `start`
    on."""
    first = lines * r // rows
    prefetch(start + first * 64, lines * (r + count) // rows - first)


def adding_rows(name: str, most: int, dot_1: Dot, dot_2: Dot, dot_4: Dot, dot_most: Dot) -> Any:
    """For kernels: sums [rows, 64] += x times `width` columns from k on of block b, which lie at `weights`, by as many rows at once
    as registers hold the sums of, `most` at most, while memory is asked for the columns that come next."""

    def add_rows(run: Any, operand: Any, b: int, k: int, width: int, weights: int, sums: int) -> None:
        rows, stride = run.rows, run.row_bytes
        x = run.x + operand.given + k // run.width * run.run_bytes
        r = FIRST
        while r < rows:
            left = rows - r
            # 8 are two times 4, since few at once are slow
            count = most if left >= most and left != 8 else 4 if left >= 4 else 2 if left >= 2 else 1
            fetch_ahead(operand, b, k + width, width, r, count, rows)
            if count == most:
                dot_most(weights, width, x + r * stride, stride, sums + r * 256)
            elif count == 4:
                dot_4(weights, width, x + r * stride, stride, sums + r * 256)
            elif count == 2:
                dot_2(weights, width, x + r * stride, stride, sums + r * 256)
            else:
                dot_1(weights, width, x + r * stride, stride, sums + r * 256)
            r += count

    return part(add_rows, name)
