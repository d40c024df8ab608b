"""A layer of the gated delta rule between its products on a GPU, here in Triton's interpreter: what the processor's gives in a
level, and the same records."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import DEVICE
from tests.kernels.test_draft_delta import COLUMNS, SHAPE, form_of, state_of
from understudy.kernels import draft_delta
from understudy.kernels.delta_form import DeltaForm, DeltaLine
from understudy.kernels.join_form import Norm
from understudy.recurrent import FOLD, RecurrentState, Room
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
from understudy.kernels.gpu import rule
from understudy.kernels.gpu.delta_layer import mix_delta


def there(form: DeltaForm) -> DeltaForm:
    line = DeltaLine(*(part.to(DEVICE) for part in form.line.parts))
    norm = Norm(form.norm.weight.to(DEVICE), form.norm.epsilon)
    return DeltaForm(line, form.weight.to(DEVICE), form.rates.to(DEVICE), form.shifts.to(DEVICE), norm)


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([0, 1, 2, 70, 130, 200]), st.integers(0, 1), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(),
    st.integers(1, 5),
)  # fmt: skip
def test_a_level_is_what_the_processor_makes_of_it(
    length: int, row: int, dtype: torch.dtype, mixed: bool, width: int
) -> None:
    torch.manual_seed(length)
    state, form = state_of(dtype), form_of(dtype, mixed)
    if length < 2 * FOLD:
        # nothing is folded before
        state.states.zero_()
    level = Nodes.of(TokenTree.of([0] * (width + 3), [-1, 0, 0, *[1, 2] * 9][: width + 3]), row, length)[3:]
    own = RecurrentState(SHAPE, Room(2, 40, dtype, DEVICE), rule.fold)
    for mine, theirs in zip((*own.records, own.states), (*state.records, state.states), strict=True):
        mine.copy_(theirs)
    before = copy.deepcopy(state)
    made = torch.randn(width, COLUMNS).to(dtype)
    wanted = draft_delta.mix_delta(made, state, level, form)
    found = mix_delta(made.to(DEVICE), own, level.to(DEVICE), there(form))
    near = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.cpu(), wanted, atol=near, rtol=near)
    for mine, theirs, old in zip(own.records, state.records, before.records, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=near, rtol=near)
        assert not torch.equal(theirs, old)
