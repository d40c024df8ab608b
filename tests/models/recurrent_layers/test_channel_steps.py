"""States that are stepped: how few steps it takes to come to the next token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.recurrent_layers.test_channel_rule import DEVICES, RATED, RATES, SHAPE, Run, drawn
from understudy.kernels.channel_cpu import run_steps
from understudy.kernels.channel_order import NODE, REPLAY, StepOrder
from understudy.kernels.recurrence import RuleStep
from understudy.models.recurrent_layers import channel_steps
from understudy.recurrent import RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree


def forgetting(order: StepOrder, step: RuleStep, state: RecurrentState, saves: Sequence[torch.Tensor]) -> torch.Tensor:
    """`run_steps` that is wrong: states that are kept hold nothing."""
    out = run_steps(order, step, state, saves)
    for save in saves:
        save.zero_()
    return out


@pytest.mark.parametrize("shape", [SHAPE, RATED])
def test_a_token_takes_no_step_again(shape: RecurrentShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's tiles go on from each other, a level from the last accepted token, and a draft's from that alone."""
    run, taken, take = Run.of(drawn(200, 4, shape), DEVICES[0]), [0], channel_steps.run_steps

    def counted(order: StepOrder, *rest: Any) -> torch.Tensor:
        taken[0] += int((order.steps[:, NODE] == REPLAY).sum())
        return take(order, *rest)

    monkeypatch.setattr(channel_steps, "run_steps", counted)
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


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_a_row_went_through_the_next_token_reads_the_same(data: st.DataObject) -> None:
    """It reads on, goes back, is copied, keeps what lets it go back far, and lies on disk meanwhile."""
    shape = data.draw(st.sampled_from([SHAPE, RATED]))
    text = drawn(500, 8, shape)
    state = RecurrentState(shape, Room(2, 64, torch.float32), DEVICES[0].fold)
    state.rates = RATES
    whole = Run.of(text, DEVICES[0]).read(TokenTree.chain([0] * 500), 0, 32)

    def read(row: int, length: int, count: int) -> torch.Tensor:
        nodes, found = Nodes.of(TokenTree.chain([0] * count), row, length), []
        for start in range(0, count, 32):
            part = nodes[start : start + 32]
            for each, position in tops(part):
                state.advance(each, position)
            found.append(channel_steps.recur(text[length + start : length + start + len(part)], state, part))
        return torch.cat(found)

    length = 0
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["read", "read", "draft", "back", "save", "copy", "resume"]))
        count = data.draw(st.integers(1, 150))
        if what == "read" and length + count < 490:
            assert torch.equal(read(0, length, count), whole[length : length + count])
            state.keep(0, length, AcceptedPath(torch.arange(count)))
            state.rewind(0, length := length + count)
        elif what == "draft" and length + 60 < 490:
            # of a chain that was read some nodes are accepted
            read(0, length, 40)
            accepted = min(count, 40)
            state.keep(0, length, AcceptedPath(torch.arange(accepted)))
            state.rewind(0, length := length + accepted)
        elif what == "save":
            state.save(0)
        elif what == "copy":
            to = state.reach(0, data.draw(st.integers(0, length)), 0)
            state.copy(0, 1, to)
            assert torch.equal(read(1, to, 5), whole[to : to + 5])
        elif what == "resume" and length >= 128:
            point = state.point(0, state.newest[0] * 64)
            state.resume(1, state.newest[0] * 64, point)
            assert torch.equal(read(1, state.newest[1] * 64, 5), whole[state.newest[1] * 64 :][:5])
        elif what == "back":
            state.rewind(0, length := state.reach(0, data.draw(st.integers(0, length)), 0))
        assert torch.equal(read(0, length, 3), whole[length : length + 3])
