"""In which order the states of nodes are made where each is its parent's, one step on (`channel_cpu.py`).

All nodes of a row and the records that must be gone through to come to them are one tree of steps: what several nodes have in
common is stepped once. It begins at the newest state of the row that is kept, and is walked so that few states are held at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..recurrent import FOLD
from ..tree import Nodes
from .compiled import compiled

# in the place of a node's number: a step that loads a state, and one that goes through a record
LOAD, REPLAY = -2, -1
# columns of an order. NODE: which node a step is of. SOURCE, INTO: which of the states that are held it takes and makes (-1: it
# makes none). PLACE: where its record lies, among those of all rows. SAVE: which of the saved states it makes (-1: none). ADDRESS:
# of the state that it loads
NODE, SOURCE, INTO, PLACE, SAVE, ADDRESS = range(6)
COLUMNS = 6
# columns of what is known of a row: its number, the number of its newest folded state, its accepted tokens, and the address of its
# folded states; tokens of two newer states (-1: there is none), and their addresses
ROW, NEWEST, ACCEPTED, FOLDED, TIP, TIP_ADDRESS, END, END_ADDRESS = range(8)
# columns of what is saved: a row's index among those that are known, after how many tokens, and as what
OF, TOKENS, KIND = range(3)
# the state after all accepted tokens; one that will be folded; the one at the end of the straight line
AS_TIP, AS_MARK, AS_END = range(3)
# columns of steps while their tree grows
_PARENT, _OF, _SLOT, _NODE, _SAVE, _ADDRESS, _CHILD, _NEXT = range(8)


@dataclass(frozen=True)
class StepOrder:
    """Steps of all rows, row after row.

    steps: [any, COLUMNS] int64; those of row r are firsts[r] to firsts[r + 1]. saves: [any, 3] int64. held: states at once."""

    steps: Any
    firsts: Any
    saves: Any
    held: int


def order(nodes: Nodes, known: Any, places: int, state_bytes: int, spared: int) -> StepOrder:
    """The order for `nodes`, parents before children, of rows of which `known` [rows, 8] int64 tells. places: records of a row;
    state_bytes: of one folded state, of which two lie side by side. The end of a straight line is saved where that spares so many
    steps: it is not yet known whether the line is accepted."""
    rows, positions, prefix, tail = nodes.arrays
    most = len(rows) + len(known) * (places + 4)
    grown, saves = np.empty((most, 8), np.int64), np.empty((most + len(known), 3), np.int64)
    seen = (rows, nodes.slots.numpy(), positions, prefix, tail)
    count, saved = _grow(seen, known, (places, state_bytes, spared), grown, saves)
    steps, firsts = np.empty((count, COLUMNS), np.int64), np.empty(len(known) + 1, np.int64)
    held = _walk(grown[:count], known, places, steps, firsts)
    return StepOrder(steps, firsts, saves[:saved], held)


@compiled
def _slot(seen: Any, node: int, position: int) -> int:
    """The slot of the token at `position` on the path of a node."""
    prefix, tail = seen[3], seen[4]
    return position if position < prefix[node] else tail[node, position - prefix[node]]


@compiled
def _grow(seen: Any, known: Any, sizes: Any, grown: Any, saves: Any) -> Any:
    """Fill `grown` with steps, parents before children. Returns how many, and how many states are saved."""
    rows, slots, positions, prefix, _ = seen
    places, state_bytes, spared = sizes
    count, saved = 0, 0
    # by row and place: the last step that was taken there; by row: the last node on the straight line, and where steps began
    latest, ends, begun = np.full((len(known), places), -1), np.full(len(known), -1), np.zeros(len(known), np.int64)
    for node in range(len(rows)):
        of = 0
        while known[of, ROW] != rows[node]:
            of += 1
        position, slot = positions[node], slots[node]
        if position > 0:
            before = _slot(seen, node, position - 1)
            parent = latest[of, before % places]
            found = parent >= 0 and grown[parent, _SLOT] == before
        else:
            parent, found = -1, False
        if not found:
            start, address = _begin(known[of], position, prefix[node], state_bytes)
            begun[of] = start
            at = position
            while at > start:
                before = _slot(seen, node, at - 1)
                parent = latest[of, before % places]
                if parent >= 0 and grown[parent, _SLOT] == before:
                    break
                at -= 1
            if at == start:
                parent, count = _loaded(grown, count, of, address)
            accepted = min(known[of, ACCEPTED], position)
            for place in range(at, position):
                before = _slot(seen, node, place)
                save = -1
                if place + 1 == accepted and accepted <= prefix[node]:
                    save, saved = _saved(saves, saved, of, accepted, AS_TIP)
                parent, count = _grown(grown, count, (parent, of, before, REPLAY, save))
                latest[of, before % places] = parent
        save = -1
        if prefix[node] == position + 1:
            ends[of] = count
            if (position + 1) % FOLD == 0:
                save, saved = _saved(saves, saved, of, position + 1, AS_MARK)
        latest[of, slot % places] = count
        parent, count = _grown(grown, count, (parent, of, slot, node, save))
    for of in range(len(known)):
        # one that will be folded is the same state, which serves as both
        if ends[of] >= 0 and grown[ends[of], _SAVE] < 0:
            tokens = positions[grown[ends[of], _NODE]] + 1
            if tokens - begun[of] >= spared:
                grown[ends[of], _SAVE], saved = _saved(saves, saved, of, tokens, AS_END)
    return count, saved


@compiled
def _begin(known: Any, position: int, prefix: int, state_bytes: int) -> Any:
    """After how many tokens the newest state of a node's path is kept, and its address."""
    number = min(known[NEWEST], position // FOLD)
    start, address = FOLD * number, known[FOLDED] + number % 2 * state_bytes
    for tokens, there in ((known[TIP], known[TIP_ADDRESS]), (known[END], known[END_ADDRESS])):
        if start < tokens <= min(prefix, position):
            start, address = tokens, there
    return start, address


@compiled
def _loaded(grown: Any, count: int, of: int, address: int) -> Any:
    """The step that loads the state at `address` for a row, and how many steps there are now."""
    for step in range(count):
        if grown[step, _NODE] == LOAD and grown[step, _OF] == of and grown[step, _ADDRESS] == address:
            return step, count
    _grown(grown, count, (-1, of, -1, LOAD, -1))
    grown[count, _ADDRESS] = address
    return count, count + 1


@compiled
def _grown(grown: Any, count: int, step: Any) -> Any:
    """Add a step; returns its number, and how many there are now."""
    for column in range(5):
        grown[count, column] = step[column]
    grown[count, _ADDRESS] = 0
    return count, count + 1


@compiled
def _saved(saves: Any, saved: int, of: int, tokens: int, kind: int) -> Any:
    """Add a state that is saved; returns its number, and how many there are now."""
    saves[saved, OF], saves[saved, TOKENS], saves[saved, KIND] = of, tokens, kind
    return saved, saved + 1


@compiled
def _walk(grown: Any, known: Any, places: int, steps: Any, firsts: Any) -> int:
    """Fill `steps` and `firsts` with the tree's steps. Returns how many states are held at once.

    The children of a step but the first make their states beside its own, and the first, which comes last, in its place."""
    roots = np.full(len(known), -1)
    grown[:, _CHILD] = -1
    for step in range(len(grown) - 1, -1, -1):
        parent, of = grown[step, _PARENT], grown[step, _OF]
        if parent >= 0:
            grown[step, _NEXT], grown[parent, _CHILD] = grown[parent, _CHILD], step
        else:
            grown[step, _NEXT], roots[of] = roots[of], step
    # steps that wait, where they take a state, and where they make one
    waiting, count, held = np.empty((len(grown), 3), np.int64), 0, 1
    for of in range(len(known)):
        firsts[of] = count
        most, step = 0, roots[of]
        while step >= 0:
            waiting[most, 0], waiting[most, 1], waiting[most, 2] = step, -1, 0
            most, step = most + 1, grown[step, _NEXT]
        while most > 0:
            most -= 1
            step, source, into = waiting[most, 0], waiting[most, 1], waiting[most, 2]
            child, save = grown[step, _CHILD], grown[step, _SAVE]
            if child < 0 and save < 0:
                into = -1
            held = max(held, into + 1)
            place = known[of, ROW] * places + grown[step, _SLOT] % places
            steps[count, NODE], steps[count, SOURCE], steps[count, INTO] = grown[step, _NODE], source, into
            steps[count, PLACE], steps[count, SAVE], steps[count, ADDRESS] = place, save, grown[step, _ADDRESS]
            count += 1
            beside = 0
            while child >= 0:
                waiting[most, 0], waiting[most, 1], waiting[most, 2] = child, into, into + beside
                most, child, beside = most + 1, grown[child, _NEXT], 1
    firsts[len(known)] = count
    return held
