"""What other implementations of batched speculative decoding got wrong, once for every policy: tokens that end texts taken for
padding, lost bonus tokens, keys of padding that count, texts that depend on their neighbours, and work that is done twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.world import CAPACITY, POLICIES, ROWS, Chains, PolicyWorld, alone
from tests.test_engine import Guessing

EVERY = pytest.mark.parametrize("policy", POLICIES)
PADDED = pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "ragged"])
# The token that padding would be in other implementations; the fake cache's empty slots and the padding's nodes may hold it.
PAD = 0
WORK = st.lists(
    st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=50), st.integers(1, 20)), min_size=1, max_size=12
)


@EVERY
@settings(max_examples=25)
@given(data=st.data(), work=WORK, stop_ids=st.sets(st.integers(0, 6), max_size=3), seed=st.integers(0, 99))
def test_whoever_comes_and_leaves_every_text_is_the_one_alone(
    policy: str, data: st.DataObject, work: list[tuple[list[int], int]], stop_ids: set[int], seed: int
) -> None:
    """Prompts hold stop tokens too, and the token of padding may be one of several that end a text."""
    world = PolicyWorld(policy, Guessing(seed))
    ids = sorted(stop_ids)
    requests = []
    for prompt, count in work:
        for _ in range(data.draw(st.integers(0, 2))):
            world.scheduler.step()
        requests.append(world.asked(prompt, count, ids))
        if data.draw(st.integers(0, 9)) == 0:
            world.scheduler.cancel(data.draw(st.sampled_from(requests)))
    world.run()
    for request, (prompt, count) in zip(requests, work, strict=True):
        text, want = request.sequence.tokens[len(prompt) :], alone(prompt, count, ids)
        assert text == (want[: len(text)] if request.cancelled else want)
    assert world.scheduler.idle and not world.engine.sequences


@PADDED
@settings(max_examples=25)
@given(script=st.lists(st.integers(0, 3), max_size=60))
def test_whatever_each_row_accepts_the_rows_end_in_one_column_and_keep_their_texts(policy: str, script: list[int]) -> None:
    world = PolicyWorld(policy, Chains(3, script))
    work = [([i % 7] * (1 + 5 * i), 17) for i in range(ROWS + 2)]
    requests = [world.asked(*one) for one in work]
    padded = world.padded
    assert padded is not None
    while not world.scheduler.idle:
        world.scheduler.step()
        for sequence in world.engine.sequences:
            assert padded.texts()[sequence.row] == sequence.tokens[: padded.lengths[sequence.row]]
            assert sequence.end == padded.pads[sequence.row] + padded.lengths[sequence.row] <= CAPACITY
    assert [request.completion().token_ids for request in requests] == [alone(*one) for one in work]
    assert 0 < padded.alignment.padding < padded.alignment.columns and padded.alignment.moved > 0


@EVERY
def test_padding_that_is_the_end_mark_ends_no_text(policy: str) -> None:
    """In other implementations, a row was cut at every token like its padding, and ended before it began."""
    world = PolicyWorld(policy, Chains(3))
    work = [([PAD, 1, PAD, i, PAD], 12) for i in range(6)]
    requests = [world.asked(*one, stop_ids=[PAD]) for one in work]
    world.run()
    texts = [request.completion().token_ids for request in requests]
    assert texts == [alone(*one, stop_ids=[PAD]) for one in work]
    assert all(len(text) == 12 or text[-1] == PAD for text in texts) and any(len(text) > 1 for text in texts)


@EVERY
def test_nothing_follows_the_first_of_several_stop_tokens_in_an_accepted_run(policy: str) -> None:
    world = PolicyWorld(policy, Chains(9))
    work = [([i], 30) for i in range(7)]
    requests = [world.asked(*one, stop_ids=[2, 5]) for one in work]
    world.run()
    for request, one in zip(requests, work, strict=True):
        text = request.completion().token_ids
        assert text == alone(*one, stop_ids=[2, 5])
        assert all(token not in (2, 5) for token in text[:-1])
    assert {request.completion().finish_reason for request in requests} >= {"stop"}


@EVERY
@pytest.mark.parametrize("depth", [1, 4])
def test_a_draft_that_is_wholly_right_gives_its_bonus_token_too(policy: str, depth: int) -> None:
    world = PolicyWorld(policy, Chains(depth))
    requests = [world.asked([i, 2], 1 + 3 * (depth + 1)) for i in range(ROWS)]
    world.run()
    assert all(request.completion().token_ids == alone([i, 2], 1 + 3 * (depth + 1)) for i, request in enumerate(requests))
    assert all(request.meter.rounds == 3 for request in requests), "one pass less for each bonus token"
    assert world.passes == 4, "the prompts, and three drafts"


@EVERY
def test_a_row_near_its_end_shortens_nobody_elses_draft(policy: str) -> None:
    world = PolicyWorld(policy, Chains(4))
    short, long = [world.asked([1], 2), world.asked([2], 11)]
    world.run()
    assert (short.meter.rounds, long.meter.rounds) == (1, 2)


@EVERY
def test_finished_rows_are_not_verified_and_no_prompt_is_read_twice(policy: str) -> None:
    drafter = Chains(2, [0, 2, 1] * 50)
    world = PolicyWorld(policy, drafter)
    prompts = [[(i * j) % 7 for j in range(3 + 9 * i)] for i in range(10)]
    requests = [world.asked(prompt, 1 + 3 * i) for i, prompt in enumerate(prompts)]
    world.run()
    assert [request.sequence.produced for request in requests] == [1 + 3 * i for i in range(10)]
    assert all(rows <= live for rows, live in world.batches)
    assert drafter.read + sum(request.sequence.reused for request in requests) == sum(map(len, prompts))
    assert sum(map(len, (rows for rows, _ in world.batches))) == world.engine.clock.rows > world.passes


@EVERY
def test_a_pass_that_fails_in_the_middle_leaves_every_text_as_it_was(policy: str) -> None:
    world = PolicyWorld(policy, Chains(3, [1, 3, 0, 2] * 20))
    work = [([i, i + 1] * (i + 1), 15) for i in range(ROWS)]
    requests = [world.asked(*one) for one in work]
    for _ in range(4):
        world.scheduler.step()
    world.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.scheduler.step()
    world.run()
    assert [request.completion().token_ids for request in requests] == [alone(*one) for one in work]


@PADDED
def test_rows_that_have_drifted_to_the_end_of_their_slots_are_moved_back(policy: str) -> None:
    """A row that stays padded after the longest has left would run out of slots."""
    world = PolicyWorld(policy, Chains(1))
    prompts = [[1] * 150, *([i] for i in range(2, 2 + ROWS))]
    counts = [8, *[140] * ROWS]
    requests = [world.asked(*one) for one in zip(prompts, counts, strict=True)]
    world.run()
    for request, prompt, count in zip(requests, prompts, counts, strict=True):
        assert request.completion().token_ids == alone(prompt, count)
