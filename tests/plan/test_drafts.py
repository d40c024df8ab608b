"""What drafts give: chances explain what was seen, and what lies between measured shapes lies between them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.plan.drafts import AGREES, BETWEEN, WIDTHS, Drafting, DraftShape, SeenDrafts

SHORT, LONG = DraftShape(4, 3, 10, 6), DraftShape(20, 5, 90, 18)


@settings(max_examples=25)
@given(st.floats(0.2, 0.98), st.integers(1, 20), st.sampled_from(WIDTHS))
def test_what_was_seen_is_explained(agrees: float, levels: int, width: int) -> None:
    tokens = Drafting(agrees).tokens(levels, width)
    assert Drafting.seen(tokens, levels, levels * width).tokens(levels, width) == pytest.approx(tokens, rel=1e-6)


def test_more_bits_give_more_tokens() -> None:
    speeds = [Drafting.by_copy(name).tokens(8, 1) for name in ("int2", "int3", "int4", "int6", "int8", "exact")]
    assert speeds == sorted(speeds) and speeds[-1] == 9
    assert Drafting.by_copy("mixed:bits=3.5") == Drafting(AGREES["mixed"])


def test_shapes_have_room_in_a_pass() -> None:
    for drafts in (Drafting(0.9), SeenDrafts.of([LONG, SHORT])):
        shapes = list(drafts.shapes(40))
        assert len(shapes) > BETWEEN and max(shape.nodes for shape in shapes) <= 40
        assert min(shape.levels for shape in shapes) == 0 and max(shape.levels for shape in shapes) > 4


def test_what_lies_between_measured_shapes_lies_between_them() -> None:
    shapes = list(SeenDrafts.of([LONG, SHORT]).shapes(1000))
    assert {SHORT, LONG} <= set(shapes) and len(shapes) == 3 + 2 * (BETWEEN - 1)
    assert DraftShape(12, 4, 50, 12) in shapes, "half way"
    assert DraftShape(2, 3, 5, 3.5) in shapes, "a shorter draft has levels of as many nodes"
    assert replace(SHORT, levels=0, nodes=0, tokens=1) in shapes, "no draft gives one token"
