"""Laws have the coefficients that made the figures, and the advice is what the figures say."""

import math
from dataclasses import replace

import pytest

from tests.scaling.made import CONSTANT, DEPTH, TOKENS, heads, speed
from understudy.scaling.laws import advice, laws, throughput
from understudy.scaling.passes import PassSample, pass_law


def test_both_laws_are_found_at_each_depth_and_budget_and_on_average() -> None:
    found = {(law.of, law.at): law for law in laws(heads())}
    assert set(found) == {
        *(("T", "D = 1"), ("T", "D = 2"), ("T", "D = 4"), ("T", "mean")),
        *(("D", "T = 1000"), ("D", "T = 4000"), ("D", "T = 16000"), ("D", "mean")),
    }
    assert found["T", "D = 2"].fit.coefficients == pytest.approx((TOKENS, CONSTANT + DEPTH * math.log(2)))
    assert found["D", "T = 4000"].fit.coefficients == pytest.approx((DEPTH, CONSTANT + TOKENS * math.log(4000)))
    assert found["T", "mean"].fit.coefficients == pytest.approx((TOKENS, CONSTANT + DEPTH * math.log(2)))
    assert all(law.fit.r2 == pytest.approx(1) for law in found.values())
    assert found["T", "D = 1"].formula == "A = 0.2 ln T + 1"


def test_a_mean_is_of_what_all_have() -> None:
    """A head that is missing at one depth does not bend the mean."""
    kept = [one for one in heads() if (one.cell.depth, one.cell.tokens) != (4, 16000)]
    found = {(law.of, law.at): law for law in laws(kept)}
    assert [x for x, _ in found["T", "mean"].points] == [1000, 4000]
    assert found["T", "mean"].fit.coefficients[0] == pytest.approx(TOKENS)


def test_kinds_are_not_mixed() -> None:
    """A Clover-2 of two layers is no deeper EAGLE."""
    others = [replace(one, cell=replace(one.cell, kind="clover2"), tokens_per_pass=9.0) for one in heads((2,))]
    found = {(law.of, law.at): law for law in laws([*heads((1,)), *others])}
    assert set(found) == {("T", "clover2, D = 2"), ("T", "eagle, D = 1")}
    assert found["T", "eagle, D = 1"].fit.coefficients[0] == pytest.approx(TOKENS)


def test_what_is_not_told_is_in_no_law() -> None:
    """Of a head whose training nobody told, and one without decoder layers."""
    assert laws([replace(one, cell=replace(one.cell, tokens=0)) for one in heads((1,))]) == []
    assert [law.of for law in laws([replace(one, cell=replace(one.cell, depth=0)) for one in heads((1,))])] == ["T"]


def test_one_head_has_no_law() -> None:
    assert laws(heads((2,), (4000,))) == []
    assert [(law.of, law.at) for law in laws(heads((1, 2), (4000,)))] == [("D", "T = 4000")]


def test_throughput_is_that_of_the_best_width_of_each_batch() -> None:
    speeds = [speed(1, batch, width) for batch in (1, 2, 4) for width in (1, 4)]
    fit = throughput(speeds)
    assert fit is not None and fit.points == 3
    for batch in (1, 4):
        best = max(one.tokens_per_second for one in speeds if one.batch == batch)
        assert fit.at(math.log2(batch)) == pytest.approx(best, rel=0.1)
    assert throughput(speeds[:2]) is None


def test_the_head_to_use_is_the_fastest_and_not_the_one_that_gives_most() -> None:
    """A fourth layer gives a little more tokens, and costs more time than that."""
    speeds = [speed(0, 1, 0, 1.0), speed(1, 1, 2, 3.0), speed(4, 1, 2, 3.1), speed(1, 8, 2, 3.0)]
    passes = pass_law([PassSample(s.rows, s.nodes, s.busy_seconds / s.passes, 0.0) for s in speeds])
    use = advice(heads(), speeds, passes)
    assert (use.depth, use.tokens) == (1, 16000) and use.head.endswith("eagle-depth1-tokens16000")
    assert use.widths == {1: 84, 8: 14} and "though" not in use.why


def test_without_speeds_the_head_that_gives_most_is_named() -> None:
    use = advice(heads(), [], None)
    assert (use.depth, use.tokens, use.widths) == (4, 16000, {}) and "not measured" in use.why


def test_where_no_head_helps_that_is_said() -> None:
    assert "though without a head" in advice(heads(), [speed(0, 1, 0, 3.0), speed(1, 1, 2, 1.0)], None).why
