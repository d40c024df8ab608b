"""What is drafted beside a pass is what would be drafted after it: nothing half written is read, and texts stay as they are."""

from typing import Any

import pytest

from tests.drafters.fixed import Unaided
from tests.drafters.remembering import CAPACITY, loop
from tests.fake_device import FakeDevice
from understudy.advance import Advance
from understudy.drafters.ahead import likeliest_chain
from understudy.engine import Engine
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.ways import TRIED

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.6, seed=11)


def written(engine: Engine, params: SamplingParams = GREEDY, tokens: int = 120, **more: Any) -> tuple[list[int], list[Advance]]:
    """The text of one request, and its passes after the first token."""
    sequence = engine.admit(TokenSequence(0, list(PROMPT), params, limit=tokens, **more))
    found = []
    while engine.sequences:
        found += engine.step()
    return sequence.tokens[len(PROMPT) :], [advance for advance in found if not advance.reads]


def total(advances: list[Advance], name: str) -> int:
    return sum(getattr(advance.counts, name) for advance in advances)


def plain(seed: int, params: SamplingParams, tokens: int = 120) -> list[int]:
    return written(loop(seed, 0, ahead=False, nodes=1)[0], params, tokens)[0]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_text_is_plain_text_and_next_drafts_begin_with_what_was_drafted_ahead(seed: int, params: SamplingParams) -> None:
    text, passes = written(loop(seed, 40)[0], params)
    assert text == plain(seed, params)
    assert total(passes, "ahead_used") > 1 and total(passes, "ahead_dropped") > 1
    assert total(passes, "ahead_used") + total(passes, "ahead_dropped") < len(passes)
    alone, before = written(loop(seed, 40, ahead=False)[0], params)
    assert alone == text and total(before, "ahead_levels") == 0
    assert total(passes, "levels") < total(before, "levels")


@pytest.mark.parametrize("late", [True, False], ids=["after", "before"])
def test_what_the_pass_overwrites_is_not_read(late: bool) -> None:
    """The model is always right here, so that whatever it drafts is wrong only where it read garbage."""
    engine, _, target = loop(5, 0, late=late)
    text, passes = written(engine)
    assert text == plain(5, GREEDY) and target.flights > 3
    assert total(passes, "ahead_dropped") == 0 and total(passes, "ahead_used") >= len(passes) - 2


def test_a_draft_goes_on_from_what_was_ready_until_no_level_pays() -> None:
    """Of a pass that is over soon: two levels are ahead of the next draft, which waits for all others as it would without."""
    engine, drafter, _ = loop(3, 0)
    search = drafter.search
    run_ahead = search.run_ahead
    search.run_ahead = lambda origin, going: run_ahead(origin, iter([True, True, False]).__next__)  # type: ignore[method-assign]
    _, passes = written(engine)
    _, alone = written(loop(3, 0, ahead=False)[0])
    ahead = [advance.counts for advance in passes if advance.counts.ahead_levels]
    assert ahead and all(counts.ahead_levels == 2 and counts.ahead_used for counts in ahead)
    assert len(passes) == len(alone), "trees are as large as they would be"
    # One of the two levels ran the end of the chain once more.
    saved = total(alone, "levels") - total(passes, "levels")
    assert len(ahead) * 0.5 <= saved <= len(ahead) * 1.5


def test_kernels_of_a_device_draft_ahead_what_torchs_operations_do() -> None:
    pytest.importorskip("triton")
    texts = []
    for where in (FakeDevice(), Unaided()):
        text, passes = written(loop(2, 40, where=where, nodes=8)[0], tokens=40)
        texts.append((text, [(advance.tokens, advance.counts) for advance in passes]))
    assert texts[0] == texts[1] and sum(counts.ahead_used for _, counts in texts[0][1]) > 1


def test_both_ways_are_tried_and_what_was_gained_decides() -> None:
    engine, drafter, target = loop(1, 0)
    assert drafter.ahead is not None
    drafter.ahead.always = False
    written(engine, tokens=400)
    (several, alone), flights = (drafter.ahead.choice.seen[0, count] for count in (2, 1)), target.flights
    assert several[0] >= TRIED and alone[0] >= TRIED and 0 < flights < target.passes - TRIED
    assert (1, 2) not in drafter.ahead.choice.seen, "of sampled texts nothing is known"


def test_nothing_is_drafted_ahead_of_what_ends_or_is_adjusted_or_has_no_room() -> None:
    some: list[tuple[SamplingParams, dict[str, Any]]] = [(SamplingParams(presence_penalty=0.5), {}), (GREEDY, {"tokens": 3})]
    for params, more in some:
        engine, _, target = loop(1, 0)
        text, _ = written(engine, params, **more)
        assert text == plain(1, params, **more) and target.flights == 0
    engine, drafter, target = loop(1, 0)
    engine.admit(TokenSequence(0, list(PROMPT), limit=CAPACITY))
    while not target.flights:
        engine.step()
    (tree,) = drafter.trees.values()
    assert drafter.ahead is not None and tree.deepest > 10
    slots = len(tree.tokens) + tree.deepest
    for beyond, there in ((3, True), (2, False)):
        tree.length = CAPACITY - slots - beyond
        origin = drafter.ahead._origin(tree, likeliest_chain(tree))
        assert (origin is not None) == there, "room for the copies, two nodes and the spare slot"


def test_a_text_that_is_left_or_goes_back_drops_what_was_drafted_ahead() -> None:
    engine, drafter, _ = loop(0, 0)
    ahead = drafter.ahead
    assert ahead is not None
    sequence = engine.admit(TokenSequence(0, list(PROMPT), limit=90))
    while ahead.flight is None:
        engine.step()
    engine.release(sequence)
    assert ahead.flight is None


def test_an_error_in_the_pass_or_beside_it_is_told_and_the_text_goes_on() -> None:
    for beside in (True, False):
        engine, drafter, target = loop(0, 0, late=False)
        sequence = engine.admit(TokenSequence(0, list(PROMPT), limit=60))
        while target.flights < 2:
            engine.step()
        assert drafter.ahead is not None
        before, run_ahead = list(sequence.tokens), drafter.search.run_ahead

        def broken(*given: Any) -> Any:
            raise ZeroDivisionError

        if beside:
            drafter.search.run_ahead = broken
            target.ran.set()
        else:
            engine.verify = broken
        with pytest.raises(ZeroDivisionError):
            engine.step()
        assert sequence.tokens == before and drafter.ahead.flight is None
        drafter.search.run_ahead, engine.verify = run_ahead, target
        while engine.sequences:
            engine.step()
        assert sequence.tokens[len(PROMPT) :] == plain(0, GREEDY, 60)
