"""States that a GPU folds, here in Triton's interpreter: near torch's, and in a walk those of a fold alone."""

import pytest
import torch

from understudy.kernels.recurrence import fold_anywhere

pytest.importorskip("triton")
from tests.kernels.gpu.test_rule import SHAPES, Sizes, opened, read, shape_of, steps, texts
from understudy.kernels.gpu import rule


@pytest.mark.parametrize("kind", SHAPES)
def test_a_state_is_folded_as_torch_folds_it(kind: tuple[Sizes, bool]) -> None:
    shape = shape_of(*kind)
    state = opened(shape, scratch=1)
    texts(state, 200, 3)
    with_torch = state.states.clone()
    held, state.states = state.states, with_torch
    fold_anywhere(state, 0, state.newest[0])
    state.states = held
    rule.fold(state, 0, state.newest[0])
    torch.testing.assert_close(state.states, with_torch, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [SHAPES[0], SHAPES[-1]])
def test_a_walk_folds_to_the_bits_of_a_fold_alone(kind: tuple[Sizes, bool]) -> None:
    """One piece goes over the place at which the other text pauses, and is folded."""
    shape = shape_of(*kind)
    step = steps(shape, 190, True, 3)
    found = []
    for cuts in ([64, 128, 129, 190], [65, 127, 190]):
        state = opened(shape)
        read(state, step, 0, 0, cuts)
        found.append((state.newest[0], state.states[0].clone()))
    assert found[0][0] == found[1][0] == 2 and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().sum() > 0
