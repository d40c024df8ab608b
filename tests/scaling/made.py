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
        method="eagle" if depth else "none",
        head=f"heads/eagle-depth{depth}-tokens16000" if depth else "",
        depth=depth,
        batch=batch,
        width=width,
        tokens=round(100 * batch * tokens_per_pass),
        seconds=busy + drafting,
        passes=100,
        rows=batch,
        nodes=batch * nodes,
        verified=nodes,
        tokens_per_pass=tokens_per_pass,
        draft_seconds=drafting,
        busy_seconds=busy,
        wait_seconds=0.0,
    )


# Beginnings of programs, in tokens of the built-in model.
TEXTS = (
    *([305, 831, 8, 65, 12, 303, 293, 271, 320, 272], [465, 2185, 461, 26, 271, 305, 859, 509, 270, 293]),
    *([604, 636, 199, 604, 706, 543, 305, 1949, 770], [402, 455, 301, 2735, 8, 1376, 293, 199]),
)
