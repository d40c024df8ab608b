"""Configurations are the same for a seed, and the table counts those within the goal."""

import random

import predicted


def test_a_seed_gives_the_same_configurations() -> None:
    chances = (random.Random(1), random.Random(1))
    first, second = ([predicted.Configuration.random("demo", chance) for _ in range(9)] for chance in chances)
    assert first == second and len({one.name for one in first}) > 6


def test_the_table_counts_what_is_within_the_goal() -> None:
    rows = {"a": {"predicted": 11.0, "reached": 10.0}, "b": {"predicted": 8.0, "reached": 10.0}}
    assert predicted.table(rows)[-1] == "1 of 2 within 15%; median 15%"
