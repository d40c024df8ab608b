"""States that are stepped: how few steps it takes to come to the next token."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.test_channel_rule import DEVICES, RATED, SHAPE, Run, drawn
from understudy.models import channel_steps
from understudy.recurrent import RecurrentShape, tops
from understudy.tree import Nodes, TokenTree


@pytest.mark.parametrize("shape", [SHAPE, RATED])
def test_a_token_takes_no_step_again(shape: RecurrentShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's tiles go on from each other, a level from the last accepted token, and a draft's from that alone."""
    run, taken, take = Run.of(drawn(200, 4, shape), DEVICES[0]), [0], channel_steps.take_steps

    def counted(state: Any, row: int, places: torch.Tensor, one: torch.Tensor) -> None:
        taken[0] += len(places)
        take(state, row, places, one)

    monkeypatch.setattr(channel_steps, "take_steps", counted)
    run.read(TokenTree.chain([0] * 150), 0, 32)
    run.accept(0, list(range(150)))
    run.read(TokenTree.chain([0] * 5), 150, 32)
    assert taken[0] == 0
    # a draft that branches, and the pass over it
    tree = TokenTree.of([0] * 4, [-1, 0, 0, 2])
    run.read(tree, 150, 1)
    assert taken[0] <= 4
    taken[0] = 0
    run.read(tree, 150, 32)
    assert taken[0] == 0
    run.accept(150, [0, 2, 3])
    run.read(TokenTree.chain([0]), 153, 1)
    assert taken[0] == 3
    run.read(TokenTree.chain([0]), 153, 1)
    assert taken[0] == 3


@pytest.mark.parametrize("shape", [SHAPE, RATED])
def test_a_line_that_was_not_accepted_leaves_nothing_to_be_folded(shape: RecurrentShape) -> None:
    """Past the 64th token there are two ways, and the one off the straight line is accepted."""
    text, other = drawn(140, 5, shape), drawn(140, 6, shape)
    alone, run = Run.of(text, DEVICES[0]), Run.of(text, DEVICES[0])
    bits = [alone.read(TokenTree.chain([0]), at, 1)[0] for at in range(140)]
    run.read(TokenTree.chain([0] * 50), 0, 32)
    run.accept(0, list(range(50)))
    tree = TokenTree.of([0] * 60, [-1, *range(29), 2, *range(30, 59)])
    places = 50 + tree.depths
    # nodes of the straight line bring another text after the third
    own = torch.ones(60, dtype=torch.bool)
    own[3:30] = False

    def mixed(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.where(own.view(-1, *[1] * (one.dim() - 1)), one[places], two[places])

    pairs = {name: (getattr(text, name), getattr(other, name)) for name in ("query", "key", "value", "decay")}
    step = replace(text, **{name: mixed(*pair) for name, pair in pairs.items()})
    if text.beta is not None and other.beta is not None:
        step = replace(step, beta=mixed(text.beta, other.beta))
    nodes = Nodes.of(tree, 0, 50)
    for row, position in tops(nodes):
        run.state.advance(row, position)
    found = channel_steps.recur(step, run.state, nodes)
    path = [0, 1, 2, *range(30, 60)]
    assert all(torch.equal(found[node], bits[50 + i]) for i, node in enumerate(path))
    run.accept(50, path)
    found = run.read(TokenTree.chain([0] * 50), 83, 32)
    assert all(torch.equal(one, bits[83 + i]) for i, one in enumerate(found))
    # from the folded state alone
    run.state.rewind(0, 70)
    assert torch.equal(run.read(TokenTree.chain([0]), 70, 1)[0], bits[70])
