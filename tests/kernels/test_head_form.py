"""How many numbers of a head are turned."""

import torch

from understudy.kernels.attention import AttentionSpec
from understudy.kernels.head_form import HeadForm, Made, Turning


def test_as_many_numbers_are_turned_as_angles_say() -> None:
    turned = {turn: HeadForm(AttentionSpec(1.0), turn).turned(8) for turn in Turning}
    assert turned == {Turning.HALVES: 8, Turning.SHARED: 16, Turning.PAIRS: 8, Turning.SORTED: 8, Turning.NONE: 0}


def test_a_line_tells_how_many_heads_there_are() -> None:
    for made, beside in ((Made.ALL, 24), (Made.ONE_FOR_BOTH, 16), (Made.QUERIES, 0)):
        for gated in (False, True):
            form = HeadForm(AttentionSpec(1.0), gated=gated, made=made)
            assert form.beside(16, 8) == beside and form.heads(6 * 16 * (1 + gated) + 2 * beside, 2, 16, 8) == 6


def test_sinks_are_made_ready_once() -> None:
    form = HeadForm(AttentionSpec(1.0, sinks=torch.ones(3, dtype=torch.bfloat16)))
    assert form.sinks is not None and form.sinks.dtype == torch.float32 and form.sinks is form.sinks
    assert HeadForm(AttentionSpec(1.0)).sinks is None
