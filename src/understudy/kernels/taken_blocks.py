"""What kernels that multiply by blocks of exact weights have in common: who takes which block, and what is asked of memory."""

from typing import Any

from .compiled import compiled
from .descriptor import OPERAND_BYTES, exact_operand, residual_blocks
from .team import take
from .vector import prefetch


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
