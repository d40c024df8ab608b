"""States that are stepped: how few steps it takes to come to the next token."""

from typing import Any

import pytest
import torch

from tests.models.test_channel_rule import DEVICES, RATED, SHAPE, Run, drawn
from understudy.models import channel_steps
from understudy.recurrent import RecurrentShape
from understudy.tree import TokenTree


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
