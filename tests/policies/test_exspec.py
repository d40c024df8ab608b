"""EXSPEC: rows that end in the same column are grouped; the oldest are realigned where too few do; nobody is left out for ever."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.world import ROWS, Chains, PolicyWorld, alone
from understudy.errors import UsageError
from understudy.policies import policy_of, rows_together
from understudy.policies.exspec import PATIENCE, ExSpec


def requests(ends: list[int]) -> list[Any]:
    """Requests that have been read and end in these columns; -1: not read yet."""
    return [SimpleNamespace(sequence=SimpleNamespace(produced=int(end >= 0), end=end)) for end in ends]


def chosen(policy: ExSpec, ends: list[int]) -> list[int]:
    """Which of the requests that end in these columns run."""
    asked = requests(ends)
    numbers = {id(one): number for number, one in enumerate(asked)}
    return [numbers[id(one)] for one in policy.select(asked, (), 8 - len(asked)).run]


@pytest.mark.parametrize(
    ("ends", "run"),
    [
        ([9, 5, 7, 5, 5, 5], [1, 3, 4, 5]),  # a full group
        ([9, 5, 7, 5, 5, 6], [1, 3, 4]),  # a partial one
        ([9, 5, 7, 5, 6, 8], [0, 1, 2, 3]),  # too few: the oldest
        ([9, 5, 7], [0, 1, 2]),
        ([9, 9, 5, 5], [0, 1, 2, 3]),
        ([5], [0]),
        ([5, 5, -1, 5, 5, -1], [0, 1, 3, 4]),  # who is read already goes on while there are enough
        ([5, 5, -1, 5, -1, -1], [2, 4, 5]),  # else new prompts are read, together
    ],
)
def test_who_is_grouped(ends: list[int], run: list[int]) -> None:
    assert chosen(ExSpec(batch=4), ends) == run


def test_how_small_a_group_may_be_is_an_option() -> None:
    assert chosen(ExSpec(batch=4, partial=1.0), [9, 5, 7, 5, 5, 6]) == [0, 1, 2, 3]
    assert chosen(ExSpec(batch=4, partial=0.5), [9, 5, 7, 5, 8, 6]) == [1, 3]


def test_nobody_is_left_out_for_ever() -> None:
    policy = ExSpec(batch=2)
    runs = [chosen(policy, [9, 5, 5, 5]) for _ in range(2 * PATIENCE + 2)]
    assert runs == [*[[1, 2]] * PATIENCE, [0, 1]] * 2


@given(ends=st.lists(st.integers(-1, 4), min_size=1, max_size=8), batch=st.integers(1, 8), rounds=st.integers(1, 4))
def test_a_pass_reads_or_verifies_and_never_too_many(ends: list[int], batch: int, rounds: int) -> None:
    policy = ExSpec(batch=batch)
    for _ in range(rounds):
        run = chosen(policy, ends)
        assert run and len(set(run)) == len(run) and len({ends[i] < 0 for i in run}) == 1
        assert len(run) <= batch or ends[run[0]] < 0


def test_rows_are_the_pool() -> None:
    assert [rows_together(ExSpec(batch=batch), 8) for batch in (0, 3, 9)] == [4, 3, 8]
    assert rows_together(ExSpec(), 1) == 1


@pytest.mark.parametrize("options", ["batch=-1", "partial=0", "partial=1.5", "partial=nan"])
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match="exspec needs a batch"):
        policy_of(f"exspec:{options}")


def test_groups_are_verified_without_moving_a_row() -> None:
    """Prompts of two lengths, one token a pass: twice ROWS rows make two full groups for good."""
    world = PolicyWorld(f"exspec:batch={ROWS}", Chains(0))
    work = [([i] * (3 if i < ROWS else 7), 12) for i in range(2 * ROWS)]
    asked = [world.asked(*one) for one in work]
    world.run()
    assert [one.completion().token_ids for one in asked] == [alone(*one) for one in work]
    assert world.padded is not None
    done = world.padded.alignment
    assert done.passes == done.still == 2 * 11 and done.moved == done.padding == 0


def test_what_was_aligned_once_is_grouped_by_the_column_it_ends_in() -> None:
    """After rows of unlike lengths were realigned they end in one column, and go on together while they accept alike."""
    world = PolicyWorld(f"exspec:batch={ROWS}", Chains(0), rows=ROWS)
    asked = [world.asked([i] * (1 + 4 * i), 12) for i in range(ROWS)]
    world.run()
    assert [one.completion().token_ids for one in asked] == [alone([i] * (1 + 4 * i), 12) for i in range(ROWS)]
    assert world.padded is not None
    assert world.padded.alignment.passes == 11 and world.padded.alignment.still == 10
    assert world.padded.alignment.moved > 0 and world.padded.alignment.padding > 0


def test_a_place_that_is_free_is_taken_while_others_go_on() -> None:
    world = PolicyWorld(f"exspec:batch={ROWS}", Chains(1))
    asked = [world.asked([i], 3 if i else 60) for i in range(3 * ROWS)]
    while not asked[-1].finished:
        world.scheduler.step()
    assert not asked[0].finished, "the pool was refilled beside a long text"
    world.run()
