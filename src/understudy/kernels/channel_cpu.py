"""The processor's rule of recurrent layers that forget by channel (KDA, Mamba): each node's state is its parent's, one step on.

Threads take parts of a row's state: a head's columns, or as many channels. One goes through all steps of the row in one order
(`channel_order.py`), with the states that it holds in the processor's cache. Every number takes its steps in the same way, whatever
else is stepped, and wherever its steps began: at a folded state, at a newer one that was kept, or at a parent beside the node. So
bits depend on a node's own path alone."""

import inspect
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..recurrent import FOLD, RecurrentState
from . import team
from .channel_given import step_given
from .channel_order import ADDRESS, COLUMNS, LOAD, NODE, PLACE, REPLAY, SAVE, StepOrder
from .channel_rated import step_rated
from .compiled import machine_code
from .descriptor import ChannelRun
from .recurrence import RuleStep

# numbers that are stepped below which waking the other threads costs more than it saves
SMALL = 1 << 18


def run_steps(order: StepOrder, step: RuleStep | None, state: RecurrentState, saves: Sequence[Tensor]) -> Tensor:
    """Take the steps of `order`: the rule after each node of `step`, [n, value heads, value size] float32. Records are put at the
    nodes' places, and `saves` [value heads, key size, value size] are filled. None: no step is of a node."""
    shape, rated = state.shape, state.shape.rated
    parts = [] if step is None else [part.contiguous() for part in (step.query, step.key, step.value, step.decay)]
    beta = None if step is None or step.beta is None else step.beta.contiguous()
    out = torch.empty_like(parts[2]) if parts else torch.empty(0)
    query, key, value, decay = [part.data_ptr() for part in parts] or [0] * 4
    rates = state.rates
    assert not rated or (rates is not None and rates.is_contiguous() and shape.key_heads == shape.value_size == 1)
    addresses = np.array([save.data_ptr() for save in saves], np.int64)
    run = ChannelRun(
        rows=len(order.firsts) - 1, key_heads=shape.key_heads, value_heads=shape.value_heads, key_size=shape.key_size,
        value_size=shape.value_size, steps=order.steps.ctypes.data, firsts=order.firsts.ctypes.data, saves=addresses.ctypes.data,
        held=order.held, query=query, key=key, value=value, decay=decay, beta=0 if beta is None else beta.data_ptr(),
        out=out.data_ptr(), keys=state.keys.data_ptr(), updates=state.values.data_ptr(), decays=state.decays.data_ptr(),
        rates=rates.data_ptr() if rated and rates is not None else 0,
    )  # fmt: skip
    team.run(entries()[rated], run, small=len(order.steps) * state.states[0, 0].numel() < SMALL)
    return out


def fold(state: RecurrentState, row: int, number: int) -> None:
    """Make the state of `row` after FOLD * (number + 1) tokens, from the one after FOLD * number tokens and the records since, or
    from one that was kept."""
    into = state.states[row, (number + 1) % 2]
    kept = None if state.tips is None else state.tips.marked(row, FOLD * (number + 1))
    if kept is not None:
        into.copy_(kept)
        return
    steps = np.zeros((1 + FOLD, COLUMNS), np.int64)
    steps[:, NODE], steps[:, SAVE] = REPLAY, -1
    steps[0, NODE], steps[0, ADDRESS] = LOAD, state.states[row, number % 2].data_ptr()
    steps[1:, PLACE] = row * state.places + (FOLD * number + np.arange(FOLD)) % state.places
    steps[FOLD, SAVE] = 0
    run_steps(StepOrder(steps, np.array([0, 1 + FOLD]), np.empty((0, 3), np.int64), 1), None, state, [into])


@cache
def entries() -> tuple[int, int]:
    """Addresses of machine code: for decays that are given, and for those that rates make."""
    return machine_code(inspect.unwrap(step_given)), machine_code(inspect.unwrap(step_rated))
