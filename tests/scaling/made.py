"""Figures of a world in which the laws hold, for the tests of what is made of them."""

import math

from understudy.scaling.cells import Accepted, grid
from understudy.scaling.laws import Speed

# Accepted tokens are TOKENS * ln T + DEPTH * ln D + CONSTANT.
TOKENS, DEPTH, CONSTANT = 0.2, 0.5, 1.0
# Seconds of a pass: whatever is in it, for each text, for each node.
WHOLE, REQUEST, NODE = 0.4, 0.02, 0.005


def heads(depths: tuple[int, ...] = (1, 2, 4), budgets: tuple[int, ...] = (1000, 4000, 16000)) -> list[Accepted]:
    return [
        Accepted(
            cell, f"heads/{cell.name}", TOKENS * math.log(cell.tokens) + DEPTH * math.log(cell.depth) + CONSTANT, (0.7, 0.5), 1000
        )
        for cell in grid("eagle", depths, budgets)
    ]


def speed(depth: int, batch: int, width: int, tokens_per_pass: float = 3.0) -> Speed:
    """100 passes; a draft has five levels, and each decoder layer of the head makes it a little longer."""
    nodes = 1 + 5 * width if depth else 1
    busy = 100 * (WHOLE + batch * (REQUEST + nodes * NODE))
    drafting = 100 * 0.03 * depth
    return Speed(
        method=f"eagle:{depth}",
        depth=depth,
        batch=batch,
        width=width,
        tokens=round(100 * batch * tokens_per_pass),
        seconds=busy + drafting,
        passes=100,
        rows=batch,
        nodes=batch * nodes,
        draft_seconds=drafting,
        busy_seconds=busy,
        wait_seconds=0.0,
        tokens_per_pass=tokens_per_pass,
    )
