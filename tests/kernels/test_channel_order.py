"""In which order states are made: each node's steps are its path, none is taken twice, and few states are held."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_tree import path_to, trees
from understudy.kernels.channel_order import (
    ADDRESS,
    AS_END,
    AS_MARK,
    AS_TIP,
    COLUMNS,
    INTO,
    KIND,
    LOAD,
    NODE,
    OF,
    PLACE,
    SAVE,
    SOURCE,
    TOKENS,
    StepOrder,
    order,
)
from understudy.recurrent import FOLD
from understudy.tree import Nodes, TokenTree

PLACES = 300
# in the place of addresses: a row's folded states are 8 bytes apart
FOLDED, TIPS, ENDS = 1000, 2000, 3000


def known(row: int, length: int, tip: int = -1, end: int = -1, newest: int | None = None) -> list[int]:
    """A row of so many accepted tokens."""
    newest = max(0, length // FOLD - 1) if newest is None else newest
    return [row, newest, length, FOLDED + 100 * row, tip, TIPS + row, end, ENDS + row]


def walked(made: StepOrder, rows: list[list[int]]) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """By node and by saved state: the address that its steps begin at, and the places that they go through."""
    nodes: dict[int, tuple[int, ...]] = {}
    saved: dict[int, tuple[int, ...]] = {}
    for of in range(len(rows)):
        held: dict[int, tuple[int, ...]] = {}
        for step in made.steps[made.firsts[of] : made.firsts[of + 1]].tolist():
            path = (step[ADDRESS],) if step[NODE] == LOAD else (*held[step[SOURCE]], step[PLACE])
            if step[NODE] >= 0:
                nodes[step[NODE]] = path
            if step[INTO] >= 0:
                assert step[INTO] < made.held
                held[step[INTO]] = path
            if step[SAVE] >= 0:
                assert step[INTO] >= 0 and step[SAVE] not in saved
                saved[step[SAVE]] = path
    return nodes, saved


def begun(tokens: int, address: int, row: int, slots: list[int]) -> tuple[int, ...]:
    """The path of a node at `slots` whose steps begin after so many tokens."""
    return (address, *(row * PLACES + slot % PLACES for slot in slots[tokens:]))


@settings(max_examples=60, deadline=None)
@given(trees(40), st.integers(0, 400), st.integers(0, 90), st.booleans(), st.integers(0, 40))
def test_each_nodes_steps_are_its_path_from_the_newest_state(
    tree: TokenTree, length: int, behind: int, folded: bool, first: int
) -> None:
    tip = length - behind if not folded and length > behind else -1
    rows = [known(3, length, tip), known(1, 70, newest=1)]
    first = min(first, len(tree) - 1)
    nodes = Nodes.join([Nodes.of(tree, 3, length, first), Nodes.of(TokenTree.chain([0] * 3), 1, 70)])
    made = order(nodes, np.array(rows), PLACES, 8, 1)
    found, saved = walked(made, rows)
    newest = rows[0][1]
    start, address = (tip, TIPS + 3) if tip > FOLD * newest else (FOLD * newest, FOLDED + 300 + newest % 2 * 8)
    for node in range(first, len(tree)):
        slots = [*range(length), *(length + each for each in path_to(tree, node))]
        assert found[node - first] == begun(start, address, 3, slots)
    count = len(tree) - first
    for i in range(3):
        assert found[count + i] == begun(64, FOLDED + 108, 1, list(range(71 + i)))
    # what paths have in common is stepped once
    steps = {found[node][:end] for node in found for end in range(1, len(found[node]) + 1)}
    assert len(made.steps) == len(steps)
    assert made.held <= 1 + int(tree.depths.max())
    told = {tuple(save) for save in made.saves.tolist()}
    for number, (of, tokens, kind) in enumerate(made.saves.tolist()):
        at = begun(start, address, 3, list(range(tokens))) if of == 0 else begun(64, FOLDED + 108, 1, list(range(tokens)))
        assert saved[number] == at, (number, kind)
    if length > max(start, 0) and first == 0:
        assert (0, length, AS_TIP) in told
    assert (1, 70, AS_TIP) in told and (1, 73, AS_END) in told


def test_a_line_keeps_states_that_will_be_folded_and_its_end() -> None:
    rows = [known(0, 0)]
    made = order(Nodes.of(TokenTree.chain([0] * 130), 0, 0), np.array(rows), PLACES, 8, 1)
    assert made.saves[:, [OF, TOKENS, KIND]].tolist() == [[0, 64, AS_MARK], [0, 128, AS_MARK], [0, 130, AS_END]]
    assert made.held == 1 and made.steps.shape == (131, COLUMNS)
    made = order(Nodes.of(TokenTree.chain([0] * 64), 0, 0), np.array(rows), PLACES, 8, 1)
    assert made.saves.tolist() == [[0, 64, AS_MARK]]


def test_a_record_at_the_place_of_a_nodes_parent_may_be_of_another_slot() -> None:
    rows = [known(0, 306, tip=306)]
    nodes = Nodes.join([Nodes.of(TokenTree.chain([0]), 0, 5), Nodes.of(TokenTree.chain([0]), 0, 306)])
    found, _ = walked(order(nodes, np.array(rows), PLACES, 8, 1), rows)
    assert found == {0: begun(0, FOLDED, 0, list(range(6))), 1: (TIPS, 6)}


def test_an_end_is_saved_where_it_spares_enough() -> None:
    rows = [known(0, 100, tip=100)]
    for count in (1, 7, 8, 20):
        made = order(Nodes.of(TokenTree.chain([0] * count), 0, 100), np.array(rows), PLACES, 8, 8)
        assert made.saves.tolist() == ([[0, 100 + count, AS_END]] if count >= 8 else [])
        # of a state that nobody wants only what its node reads is worked out
        assert (made.steps[:, INTO] < 0).sum() == (count < 8)


def test_an_end_is_gone_on_from_where_it_lies_on_the_path() -> None:
    # nodes 2 and 3 leave the straight line after node 0, node 4 goes on with it after node 1
    tree = TokenTree.of([0] * 5, [-1, 0, 0, 2, 1])
    nodes: Any = Nodes.of(tree, 0, 100)[2:]
    rows = [known(0, 100, tip=100, end=102)]
    found, _ = walked(order(nodes, np.array(rows), PLACES, 8, 1), rows)
    assert found == {0: (TIPS, 100, 102), 1: (TIPS, 100, 102, 103), 2: (ENDS, 104)}
