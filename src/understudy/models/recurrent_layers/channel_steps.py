"""The rule with a decay for each channel on a processor: each node's state is its parent's, one step on.

A state is the same wherever its steps began, since each is taken in the same way (`kernels/channel_cpu.py`). So they begin at the
newest state that is kept of a node's path (`recurrent_tips`), and newer ones that they come to are kept."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...kernels import channel_order
from ...kernels.channel_cpu import run_steps
from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentState
from ...recurrent_tips import Kept, Tips
from ...tree import Nodes

# Steps that must be spared for a state to be kept at the end of a line. To keep one of KDA, 2 MB in a large model, takes as long as
# some ten steps; one of Mamba a quarter of that, and its steps are longer.
SPARED, SPARED_RATED = 8, 2


def recur(step: RuleStep, state: RecurrentState, nodes: Nodes) -> Tensor:
    """The rule after each of `nodes`, parents before their children: [n, value heads, value size] float32. Records are put at their
    slots."""
    tips = state.tips
    assert tips is not None, "the states of this layer are not kept"
    first: dict[int, int] = {}
    for row, slot in zip(nodes.rows.tolist(), nodes.slots.tolist(), strict=True):
        first[row] = min(first.get(row, slot), slot)
    for row, slot in first.items():
        tips.write(row, slot)
    known = list(first)
    lines = np.array([_known(state, tips, row) for row in known], np.int64)
    spared = SPARED_RATED if state.shape.rated else SPARED
    order = channel_order.order(nodes, lines, state.places, state.shape.state_bytes, spared)
    told = [(known[of], tokens, kind) for of, tokens, kind in order.saves.tolist()]
    rooms = {row: iter(tips.rooms(row, [of for of, _, _ in told].count(row), state.states[0, 0])) for row in known}
    saves = [next(rooms[row]) for row, _, _ in told]
    out = run_steps(order, step, state, saves)
    for (row, tokens, kind), saved in zip(told, saves, strict=True):
        if kind == channel_order.AS_TIP:
            tips.tips[row] = tokens, saved
            continue
        if kind == channel_order.AS_MARK:
            tips.mark(row, tokens, saved)
        # of a straight line the last that is saved is its end
        tips.ends[row] = tokens, saved
    for row in known:
        tips.settle(row)
    return out


def _known(state: RecurrentState, tips: Tips, row: int) -> list[int]:
    """What an order must know of `row`: see `channel_order`."""

    def newer(kept: Kept | None) -> list[int]:
        return [-1, 0] if kept is None else [kept[0], kept[1].data_ptr()]

    line = [row, state.newest[row], tips.lengths[row], state.states[row].data_ptr()]
    return [*line, *newer(tips.tips[row]), *newer(tips.ends[row])]
