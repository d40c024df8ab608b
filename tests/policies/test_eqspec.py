"""EQSPEC: whoever is admitted together reads together, then drafts together, and nobody joins before all have left."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.policies.world import ROWS, Chains, PolicyWorld, alone
from understudy.policies import rows_together
from understudy.policies.eqspec import EqSpec


def requests(produced: list[int]) -> list[Any]:
    return [SimpleNamespace(sequence=SimpleNamespace(produced=count)) for count in produced]


@given(running=st.lists(st.integers(0, 2), max_size=5), waiting=st.integers(0, 5), free=st.integers(0, 5))
def test_a_batch_is_static_and_its_passes_read_or_verify(running: list[int], waiting: int, free: int) -> None:
    before, after = requests(running), requests([0] * waiting)
    selection = EqSpec().select(tuple(before), tuple(after), free)
    assert list(selection.admit) == ([] if running else after[:free])
    batch = [*before, *selection.admit]
    assert {id(one) for one in selection.run} <= {id(one) for one in batch} and bool(selection.run) == bool(batch)
    assert len({bool(one.sequence.produced) for one in selection.run}) <= 1
    if any(not one.sequence.produced for one in batch):
        assert not selection.run[0].sequence.produced, "prompts are read first"
    else:
        assert list(selection.run) == batch


def test_all_rows_are_verified_together() -> None:
    assert rows_together(EqSpec(), 8) == 8


def test_rows_of_one_length_need_no_realigning_and_others_do() -> None:
    """With one bonus token less or more, rows end in different columns; two rows that accept alike do not."""
    alike, unlike = PolicyWorld("eqspec", Chains(3)), PolicyWorld("eqspec", Chains(3, [0, 1, 2, 3] * 9))
    for world in (alike, unlike):
        asked = [world.asked([i, 5], 25) for i in range(ROWS)]
        world.run()
        assert [one.completion().token_ids for one in asked] == [alone([i, 5], 25) for i in range(ROWS)]
    assert alike.padded is not None and unlike.padded is not None
    still, moved = alike.padded.alignment, unlike.padded.alignment
    assert still.passes == still.still > 0 and still.moved == still.bytes == still.padding == 0
    assert moved.passes > moved.still and moved.moved > 0 and moved.seconds > 0
    assert moved.bytes == 8 * moved.moved, "a key and a value of one float32 each"
    assert 0 < moved.padding < moved.columns


def test_the_batch_waits_for_its_last_request() -> None:
    world = PolicyWorld("eqspec", Chains(1))
    asked = [world.asked([i], 4 if i else 40) for i in range(ROWS + 1)]
    while not asked[0].finished:
        world.scheduler.step()
        assert asked[-1].sequence.row == -1
    world.run()
    assert [one.completion().token_ids for one in asked] == [alone([i], 4 if i else 40) for i in range(ROWS + 1)]
