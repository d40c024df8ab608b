"""Configurations are the same for a seed, and the table counts those within the goal."""

import random
from dataclasses import replace

import pytest

import predicted
from understudy.plan.rounds import Arithmetic


def test_a_seed_gives_the_same_configurations() -> None:
    chances = (random.Random(1), random.Random(1))
    first, second = ([predicted.Configuration.random("demo", chance) for _ in range(9)] for chance in chances)
    assert first == second and len({one.name for one in first}) > 6


def test_the_table_counts_what_is_within_the_goal() -> None:
    calm = {"waited": 0.01, "changed": 0.02}
    rows = {
        "a": {"predicted": 11.0, "reached": 10.0, **calm}, "b": {"predicted": 8.0, "reached": 10.0, **calm},
        "c": {"predicted": 99.0, "reached": 10.0, **calm, "waited": 0.5},
    }  # fmt: skip
    assert predicted.table(rows)[-1] == "1 of 2 within 15%; median 15%; 1 more were disturbed"


def test_a_machine_is_quiet_where_nobody_waits_and_its_speeds_stay() -> None:
    first = Arithmetic(10.0, 1.0, 20.0, 30.0, *[1.0] * 10)
    second = replace(first, rebuilt_rate=25.0, round_rest=3.0)
    assert predicted.changed(first, first) == 0 and predicted.changed(first, second) == pytest.approx(0.2)
    assert predicted.between(first, second) == replace(first, rebuilt_rate=22.5, round_rest=2.0)
    assert predicted.quiet({"waited": 0.05, "changed": 0.1}) and not predicted.quiet({"waited": 0.01})
    assert not predicted.quiet({"waited": 0.06, "changed": 0.0}) and not predicted.quiet({"waited": 0.0, "changed": 0.2})
