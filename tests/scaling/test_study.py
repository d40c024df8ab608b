"""A study tells what follows from its figures, and what does not."""

import json

import pytest

from tests.scaling.made import heads, speed
from understudy.errors import UnderstudyError
from understudy.scaling.study import Study


def test_a_study_has_all_three_laws_and_is_json() -> None:
    speeds = [speed(depth, batch, width) for depth in (1, 2) for batch in (1, 4) for width in (1, 4)]
    study = Study.of("demo", heads(), speeds)
    assert study.notes == () and study.passes is not None and study.throughput is not None
    told = json.loads(json.dumps(study.to_dict()))
    assert told["passes"]["width"] == pytest.approx([80, 4]) and len(told["laws"]) == 8
    assert told["laws"][0]["formula"].startswith("A = ") and told["laws"][0]["paper"] == [0.08, 5.05, 0.89]
    assert told["speeds"][0]["tokens_per_second"] > 0 and told["advice"]["depth"] == 1


def test_what_does_not_follow_is_said() -> None:
    study = Study.of("demo", heads((1,), (1000,)), [speed(1, 1, 2)])
    assert study.passes is None and study.laws == ()
    assert "two depths, or two budgets" in study.notes[0] and "No best width" in study.notes[1]


def test_nothing_follows_from_nothing() -> None:
    with pytest.raises(UnderstudyError, match="No head was measured"):
        Study.of("demo", [], [])
