"""What stays below its budget and near its plan is counted, and what was killed, or not refused, is not passed over."""

import random

import held


def test_what_is_above_and_what_was_killed_count() -> None:
    good = {"peak": 98, "used": 100, "budget": 102, "refused": "too long"}
    rows = {
        "a": good,
        "b": {**good, "peak": 103, "used": 101},
        "c": {"failed": "killed for memory", "budget": 1},
        "d": {**good, "peak": 80},
        "e": {**good, "refused": ""},
    }
    told = "5 configurations: 3 above the budget or not refused, 3 within 3% of the plan, median -2.0%"
    assert held.summary(rows)[-1] == told


def test_configurations_are_those_of_the_seed_and_all_kinds_come() -> None:
    chance, again = random.Random(0), random.Random(0)
    some = [held.Held.chosen(chance, number, "/a/model") for number in range(50)]
    assert some == [held.Held.chosen(again, number, "/a/model") for number in range(50)]
    assert {one.method for one in some} > {"none", "ngram"} and {one.codec for one in some} == {"delta", "raw"}
    assert sum(bool(one.real) for one in some) >= 4 and len({one.name for one in some}) == 50
