"""Which lines of which layers the draft's kernel of the gated delta rule takes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kernels.test_draft_delta import COLUMNS, SHAPE, VALUES, form_of, state_of


@pytest.mark.parametrize("name", ["channels", "gates", "betas", "decays"])
def test_lines_of_other_sizes_do_not_suit(name: str) -> None:
    state, form = state_of(torch.float32), form_of(torch.float32, False)
    assert form.suits(state, COLUMNS) and not form.suits(state, SHAPE.channels + VALUES)
    fewer: dict[str, Any] = {name: getattr(form.line, name)[1:]}
    apart: dict[str, Any] = {name: torch.stack([getattr(form.line, name)] * 2, 1)[:, 0]}
    for change in (fewer, apart):
        assert not replace(form, line=replace(form.line, **change)).suits(state, COLUMNS)


def test_a_convolution_of_other_taps_does_not_suit() -> None:
    form = form_of(torch.float32, False)
    assert not replace(form, weight=form.weight[:, 1:].contiguous()).suits(state_of(torch.float32), COLUMNS)
