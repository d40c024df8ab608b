"""The loop alone, on an exact model that is a function of a text: whatever trees come, whoever joins, no token changes."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.cache import Cache
from understudy.drafters import Base
from understudy.engine import Choose, Engine
from understudy.layer_states import LayerShape
from understudy.models.cost import PassCost
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

VOCABULARY = 7


def following(text: Sequence[int]) -> int:
    """The exact model: its next token depends on every token so far."""
    value = 17
    for token in text:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCABULARY


class Slab(Cache):
    """A cache whose keys are the tokens themselves, so that the model can read what each node sees."""

    def __init__(self, rows: int):
        super().__init__([LayerShape(1, 1, 1)], rows, 256, torch.float32)

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.layers[0].write(nodes, nodes.tokens.float()[:, None, None], nodes.tokens.float()[:, None, None])
        logits = torch.zeros(len(wanted), VOCABULARY)
        for place, node in enumerate(wanted.tolist()):
            seen = self.layers[0].keys[int(nodes.rows[node]), 0, nodes.slots_in_order(node), 0]
            logits[place, following([int(token) for token in seen])] = 1
        pieces = [choose(logits[start : start + 5], start) for start in range(0, len(wanted), 5)]
        return torch.cat(pieces) if pieces else wanted, None


class Guessing(Base):
    """Trees of random shape: some nodes right, most wrong."""

    def __init__(self, seed: int, nodes: int = 20):
        self.random = random.Random(seed)
        self.nodes = nodes

    def draft(self, rows: Sequence[TokenSequence]) -> list[TokenTree]:
        return [self._tree(row) for row in rows]

    def _tree(self, row: TokenSequence) -> TokenTree:
        tokens, parents, texts = [row.tokens[-1]], [-1], [list(row.tokens)]
        for _ in range(self.random.randrange(self.nodes)):
            parent = self.random.randrange(len(tokens))
            right = self.random.random() < 0.7
            token = following(texts[parent]) if right else self.random.randrange(VOCABULARY)
            taken = [tokens[i] for i in range(len(tokens)) if parents[i] == parent]
            if token not in taken and len(texts[parent]) - len(row.tokens) < row.remaining - 1:
                tokens.append(token)
                parents.append(parent)
                texts.append([*texts[parent], token])
        return TokenTree.of(tokens, parents)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 40)), min_size=1, max_size=6
    ),
    st.integers(0, 10_000),
)
def test_rows_join_and_leave_and_no_token_changes(work: list[tuple[list[int], int]], seed: int) -> None:
    slab = Slab(3)
    engine = Engine(slab.verify, slab, Guessing(seed))
    waiting = [TokenSequence(-1, list(prompt), SamplingParams(max_new_tokens=count)) for prompt, count in work]
    rows, drafted, accepted = list(waiting), 0, 0
    while waiting or engine.sequences:
        free = set(range(3)) - {row.row for row in engine.sequences}
        while waiting and free:
            row = waiting.pop(0)
            row.row = free.pop()
            engine.admit(row)
        for step in engine.step():
            drafted += step.drafted
            accepted += step.accepted
    for row, (prompt, count) in zip(rows, work, strict=True):
        expected = list(prompt)
        for _ in range(count):
            expected.append(following(expected))
        assert row.tokens == expected and row.finish_reason == "length"
    assert accepted <= drafted


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=90), min_size=1, max_size=3), st.integers(66, 120))
@settings(max_examples=40, deadline=None)
def test_long_prompts_are_read_in_pieces_that_a_pass_can_hold(prompts: list[list[int]], most: int) -> None:
    slab, passes = Slab(3), []

    def verify(nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        passes.append(len(nodes))
        return slab.verify(nodes, wanted, choose)

    engine = Engine(verify, slab, Guessing(7), most)
    rows = [TokenSequence(i, list(prompt), SamplingParams(max_new_tokens=9)) for i, prompt in enumerate(prompts)]
    first, *others = [engine.admit(row) for row in rows[:1]] + rows[1:]
    engine.step()
    for row in others:
        engine.admit(row)
    while engine.sequences:
        engine.step()
    assert max(passes) <= most
    for row, prompt in zip(rows, prompts, strict=True):
        expected = list(prompt)
        for _ in range(9):
            expected.append(following(expected))
        assert row.tokens == expected
    together = sum(map(len, prompts[1:]))
    least = -(-len(prompts[0]) // most) + -(-together // most)
    assert engine.clock.passes == len(passes) >= least and first.prompt_length == len(prompts[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 200), st.integers(45, 70), st.integers(0, 100))
def test_everybody_advances_in_every_pass_while_a_long_prompt_is_read(length: int, most: int, seed: int) -> None:
    slab = Slab(3)
    engine = Engine(slab.verify, slab, Guessing(seed, most // 2), most)
    going = [engine.admit(TokenSequence(i, [i + 1], SamplingParams(max_new_tokens=100))) for i in range(2)]
    engine.step()
    long = engine.admit(TokenSequence(2, [token % 7 for token in range(length)], SamplingParams(max_new_tokens=3)))
    passes = 0
    while long.produced == 0:
        advances = engine.step()
        passes += 1
        assert {advance.sequence for advance in advances} >= {s for s in going if s.finish_reason is None} | {long}
        for advance in advances:
            assert advance.tokens or advance.sequence is long, "a decoding sequence stood still"
            assert advance.reads == (advance.sequence is long) and advance.nodes > 0
    assert passes >= length // most
    while engine.sequences:
        engine.step()
    for sequence in (*going, long):
        expected = sequence.tokens[: sequence.prompt_length]
        while len(expected) < len(sequence.tokens):
            expected.append(following(expected))
        assert sequence.tokens == expected and sequence.finish_reason == "length"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(10, 80), min_size=2, max_size=3), st.integers(3, 40))
def test_every_prompt_is_read_on_in_every_pass_and_the_oldest_half(lengths: list[int], most: int) -> None:
    slab = Slab(3)
    engine = Engine(slab.verify, slab, Guessing(1, nodes=1), most)
    prompts = [[(token + row) % 7 for token in range(length)] for row, length in enumerate(lengths)]
    reading = [engine.admit(TokenSequence(i, prompt, SamplingParams(max_new_tokens=1))) for i, prompt in enumerate(prompts)]
    while engine.sequences:
        going = [sequence for sequence in reading if sequence.finish_reason is None]
        left = [len(sequence.tokens) - slab.lengths[sequence.row] for sequence in going]
        read = {advance.sequence: advance.nodes for advance in engine.step()}
        assert min(read[sequence] for sequence in going) >= 1, "a prompt stood still"
        assert sum(read.values()) == min(most, sum(left))
        assert read[going[0]] >= min(left[0], (most - len(going)) // 2)


class Costly(PassCost):
    """A pass takes as long as 40 nodes and its own."""

    def seconds(self, nodes: int) -> float:
        return 0.01 * (40 + nodes)


def test_reading_takes_no_more_time_than_decoding_beside_it() -> None:
    slab = Slab(3)
    engine = Engine(slab.verify, slab, Guessing(2, nodes=10), 200, Costly())
    going = [engine.admit(TokenSequence(i, [i + 1], SamplingParams(max_new_tokens=60))) for i in range(2)]
    engine.step()
    long = engine.admit(TokenSequence(2, [1, 2, 3, 4, 5, 6] * 30, SamplingParams(max_new_tokens=3)))
    passes = 0
    while long.produced == 0:
        advances = engine.step()
        decoding = [advance for advance in advances if not advance.reads]
        drafted = sum(advance.nodes for advance in decoding)
        (read,) = [advance.nodes for advance in advances if advance.reads]
        assert len(decoding) == 2 and all(advance.tokens for advance in decoding)
        assert 0 < read <= 40 + drafted, "a pass took more than twice its time"
        passes += 1
    assert passes >= 3 and all(sequence.finish_reason is None for sequence in going)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 1000))
def test_what_a_stop_token_cuts_off_was_not_accepted(stop: int, seed: int) -> None:
    slab = Slab(1)
    engine = Engine(slab.verify, slab, Guessing(seed))
    sequence = engine.admit(TokenSequence(0, [seed % 7], SamplingParams(max_new_tokens=60), stop_ids=frozenset([stop])))
    while engine.sequences:
        (advance,) = engine.step()
        assert advance.accepted <= min(advance.drafted, len(advance.tokens))
        assert stop not in advance.tokens[:-1]
    expected = [seed % 7]
    while len(expected) < len(sequence.tokens):
        expected.append(following(expected))
    assert sequence.tokens == expected and (sequence.tokens[-1] == stop) == (sequence.finish_reason == "stop")


@pytest.mark.parametrize("seed", range(8))
def test_logits_that_are_no_numbers_end_their_sequence_without_a_token_and_no_other(seed: int) -> None:
    slab = Slab(2)

    def verify(nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        beyond = (nodes.rows[wanted] == 0) & (nodes.positions[wanted] >= 12)

        def broken(logits: Tensor, start: int) -> Tensor:
            return choose(logits.masked_fill(beyond[start : start + len(logits), None], float("nan")), start)

        return slab.verify(nodes, wanted, broken)

    engine = Engine(verify, slab, Guessing(seed))
    sequences = [engine.admit(TokenSequence(row, [row + 1, 2], SamplingParams(max_new_tokens=30))) for row in range(2)]
    given: dict[int, list[int]] = {0: [], 1: []}
    while engine.sequences:
        for advance in engine.step():
            given[advance.sequence.row] += advance.tokens
    assert [sequence.finish_reason for sequence in sequences] == ["error", "length"]
    for sequence, count in zip(sequences, (11, 30), strict=True):
        expected = sequence.tokens[:2]
        while len(expected) < 2 + count:
            expected.append(following(expected))
        assert sequence.tokens == expected and given[sequence.row] == expected[2:]


def test_an_interrupt_while_texts_advance_leaves_no_cache_row_ahead_of_its_text() -> None:
    slab = Slab(2)
    engine = Engine(slab.verify, slab, Guessing(5))
    rows = [engine.admit(TokenSequence(i, [1, 2, 3 + i], SamplingParams(max_new_tokens=30))) for i in range(2)]
    engine.step()

    def interrupted(token: int) -> bool:
        raise KeyboardInterrupt

    rows[1].stops = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert all(slab.lengths[row.row] < len(row.tokens) for row in rows)
    rows[1].stops = lambda token: False
    while engine.sequences:
        engine.step()
    for row in rows:
        expected = row.tokens[:3]
        while len(expected) < len(row.tokens):
            expected.append(following(expected))
        assert row.tokens == expected


def test_a_failed_pass_leaves_every_row_as_it_was() -> None:
    slab = Slab(1)
    calls = iter([False, True, False, False, False, False, False, False])

    def verify(nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        if next(calls):
            raise OSError("the link broke")
        return slab.verify(nodes, wanted, choose)

    engine = Engine(verify, slab, Guessing(1))
    row = engine.admit(TokenSequence(0, [1, 2, 3], SamplingParams(max_new_tokens=6)))
    engine.step()
    before, length = list(row.tokens), slab.lengths[0]
    try:
        engine.step()
    except OSError:
        assert (row.tokens, slab.lengths[0]) == (before, length)
    while engine.sequences:
        engine.step()
    expected = [1, 2, 3]
    for _ in range(6):
        expected.append(following(expected))
    assert row.tokens == expected


def test_a_prefix_is_read_once() -> None:
    slab, seen = Slab(1), []

    def verify(nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        seen.append(len(nodes))
        return slab.verify(nodes, wanted, choose)

    engine = Engine(verify, slab, Guessing(3))
    row = engine.admit(TokenSequence(0, [1, 2, 3, 4], SamplingParams(max_new_tokens=1)))
    engine.step()
    engine.admit(TokenSequence(0, [*row.tokens[:4], 5, 6], SamplingParams(max_new_tokens=1)))
    engine.step()
    assert seen == [4, 2]


class Learning(Guessing):
    """Notes what it is told of rounds."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, nodes=6)
        self.rounds: list[tuple[int, float, bool]] = []

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        self.rounds.append((tokens, seconds, prefill))


def test_what_is_read_beside_drafts_counts_neither_as_their_tokens_nor_as_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slab, drafter = Slab(2), Learning(3)
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr("understudy.engine.time.perf_counter", lambda: float(next(clock)))
    engine = Engine(slab.verify, slab, drafter, 200, Costly())
    engine.admit(TokenSequence(0, [1], SamplingParams(max_new_tokens=40)))
    engine.step()
    assert drafter.rounds == [(1, 8.0, True)], "a round that only read a prompt"
    engine.admit(TokenSequence(1, [2] * 30, SamplingParams(max_new_tokens=5)))
    advances = engine.step()
    assert [advance.reads for advance in advances] == [False, True] and len(advances[1].tokens) == 1
    tokens, seconds, prefill = drafter.rounds[-1]
    assert tokens == len(advances[0].tokens) and seconds == pytest.approx(8.0 - 0.01 * 30) and not prefill
