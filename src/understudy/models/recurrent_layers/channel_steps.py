"""The rule with a decay for each channel on a processor: each node's state is its parent's, one step on.

A state is the same wherever its steps began, since each is taken in the same way and in the same shape: at the folded one, at a
newer one that was kept (`recurrent_tips`), or at a parent that runs beside the node. So bits depend on a node's own path alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.recurrence import RuleStep
from ...recurrent import FOLD, RecurrentState, add_step, factors, take_steps
from ...recurrent_tips import Tips
from ...tree import Nodes


def recur(step: RuleStep, state: RecurrentState, nodes: Nodes) -> Tensor:
    """The rule after each of `nodes`, parents before their children: [n, value heads, value size] float32. Records are put at their
    slots."""
    out = torch.empty_like(step.value)
    rows = nodes.rows.tolist()
    for row in dict.fromkeys(rows):
        _Row(step, state, nodes, row, [node for node, own in enumerate(rows) if own == row]).run(out)
    return out


@dataclass
class _Row:
    """The nodes of one row."""

    step: RuleStep
    state: RecurrentState
    nodes: Nodes
    row: int
    # their numbers among all
    own: list[int]
    # by slot: a state that nodes still want, and how many of them
    held: dict[int, Tensor] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)

    def run(self, out: Tensor) -> None:
        """Fill `out` at the row's nodes."""
        state, nodes, step = self.state, self.nodes, self.step
        tips = state.tips
        assert tips is not None, "the states of this layer are not kept"
        slots, positions, parents = (tensor.tolist() for tensor in (nodes.slots, nodes.positions, nodes.parents))
        for node in self.own:
            self.wanted[parents[node]] = self.wanted.get(parents[node], 0) + 1
            tips.write(self.row, slots[node])
        keys, decays = step.key, factors(state, step.decay)
        for node in self.own:
            slot, position = slots[node], positions[node]
            one = self._parent(tips, node, parents[node], position)
            one.mul_(decays[node][..., None])
            value = step.value[node]
            if step.beta is not None:
                value = step.beta[node][:, None] * (value - _read(one, keys[node]))
            place = slot % state.places
            state.keys[self.row, place], state.values[self.row, place] = keys[node], value
            state.decays[self.row, place] = step.decay[node]
            add_step(one, keys[node], value)
            out[node] = _read(one, step.query[node])
            if self.wanted.get(slot):
                self.held[slot] = one
            if int(nodes.prefix[node]) == position + 1:
                if not (position + 1) % FOLD:
                    tips.mark(self.row, position + 1, one.clone())
                if not self.wanted.get(slot):
                    tips.ends[self.row] = position + 1, one

    def _parent(self, tips: Tips, node: int, parent: int, position: int) -> Tensor:
        """The state before `node`, to be written: that of the parent at its slot itself, where no other node wants it."""
        # none is the parent of a text's first token, and of what lies at its slot
        slot = parent if position else -1
        if slot not in self.held:
            self.held[slot] = self._before(tips, node, position)
        self.wanted[parent] -= 1
        return self.held[slot].clone() if self.wanted[parent] else self.held.pop(slot)

    def _before(self, tips: Tips, node: int, position: int) -> Tensor:
        """The state after the `position` tokens before `node`, by records of its path."""
        path = self.nodes.slots_in_order(node)[:position]
        kept = tips.best(self.row, min(int(self.nodes.prefix[node]), position))
        number = min(self.state.newest[self.row], position // FOLD)
        start, one = FOLD * number, self.state.states[self.row, number % 2]
        if kept is not None and kept[0] > start:
            start, one = kept
        one = one.clone()
        accepted = min(tips.lengths[self.row], position)
        if accepted > start:
            take_steps(self.state, self.row, path[start:accepted] % self.state.places, one)
            tips.tips[self.row], start = (accepted, one.clone()), accepted
        take_steps(self.state, self.row, path[start:] % self.state.places, one)
        return one


def _read(one: Tensor, x: Tensor) -> Tensor:
    """What the state `one` [value heads, key size, value size] gives at x [key heads, key size]: [value heads, value size]."""
    if len(x) == 1 and one.shape[2] == 1:
        return one[..., 0] @ x[0, :, None]
    return torch.bmm(x.expand(one.shape[:2])[:, None], one)[:, 0]
