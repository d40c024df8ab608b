"""A head is given each token with the target's hidden state at the token before, however the text was read."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.heads import CAPACITY, SIZE, VOCABULARY, Target, chosen, expected, noted, runner, told
from understudy.drafters import Base, Verified
from understudy.drafters.head_state import KEPT, PIECE, HeadState
from understudy.engine import Engine
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree


class Checking(Base):
    """Drafts trees of right and wrong tokens, and looks at what its head was given before each draft."""

    def __init__(self, target: Target, layers: int = 1):
        self.state = HeadState(runner(target, layers))
        self.layers = layers
        self.last: dict[int, torch.Tensor] = {}
        self.drafts = self.accepted = self.copies = 0

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        self.last |= self.state.read(sequences)
        self.drafts += len(sequences)
        return [self._tree(sequence) for sequence in sequences]

    def _tree(self, sequence: TokenSequence) -> TokenTree:
        text, row = sequence.tokens, sequence.row
        length = self.state.cache.lengths[row]
        assert length == max(len(text) - 1 - self.state.lag, 0)
        for layer in range(self.layers):
            assert noted(self.state.cache, row, layer) == expected(text, layer)[:length], f"layer {layer}"
        assert self.last[row][:SIZE].tolist() == [h + text[-1] for h in told(text[:-1])], "the state of the last token"
        right = chosen(text)
        tokens, parents = [text[-1], (right + 1) % VOCABULARY, right, chosen([*text, right])], [-1, 0, 0, 2]
        count = max(min(len(tokens), 1 + sequence.remaining), 1)
        tree = TokenTree.of(tokens[:count], parents[:count])
        below = Nodes.of(tree, row, len(text) - 1, 1)
        if len(below):  # leaves keys in the scratch that no text may ever see
            self.state.runner.follow(below, torch.zeros(len(below), self.state.runner.head.state_size), 1)
        return tree

    def observe(self, verified: Verified) -> None:
        self.accepted += verified.drafted and len(verified.path) - 1
        self.state.observe(verified)

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        self.state.rewind(sequence.row, length)

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        self.copies += 1
        self.state.copy(row, sequence.row, length)

    def reach(self, row: int, length: int) -> int:
        return self.state.reach(row, length)


def run(engine: Engine, sequences: list[TokenSequence]) -> None:
    while engine.sequences:
        engine.step()
    for sequence in sequences:
        text = sequence.tokens[: sequence.prompt_length]
        while len(text) < len(sequence.tokens):
            text.append(chosen(text))
        assert sequence.tokens == text


def opened(rows: int, max_nodes: int = 1 << 30, layers: int = 1) -> tuple[Engine, Checking]:
    target = Target(rows)
    drafter = Checking(target, layers)
    return Engine(target.verify, target.cache, drafter, max_nodes), drafter


@settings(max_examples=25, deadline=None)
@given(data=st.data(), max_nodes=st.sampled_from([20, 70, 1 << 30]), layers=st.sampled_from([0, 1, 3]))
def test_what_a_head_is_given_depends_on_the_text_alone(data: st.DataObject, max_nodes: int, layers: int) -> None:
    """Prompts in chunks, drafts, texts that leave early, and later ones that begin like earlier ones, in any row."""
    engine, _ = opened(3, max_nodes, layers)
    texts = [[data.draw(st.integers(0, 2)) for _ in range(3)] * data.draw(st.integers(1, 60)) for _ in range(2)]
    for _ in range(data.draw(st.integers(2, 5))):
        free = [row for row in range(3) if all(row != other.row for other in engine.sequences)]
        if free:
            begun = data.draw(st.sampled_from(texts))
            prompt = begun[: data.draw(st.integers(1, len(begun)))] + data.draw(st.lists(st.integers(0, 2), max_size=2))
            params = SamplingParams(max_new_tokens=data.draw(st.integers(1, 9)))
            row = engine.row_for(prompt, free)
            texts.append(engine.admit(TokenSequence(row, prompt, params)).tokens)
        for _ in range(data.draw(st.integers(0, 4))):
            if engine.sequences:
                engine.step()
        if engine.sequences and data.draw(st.booleans()):
            engine.release(data.draw(st.sampled_from(engine.sequences)))
    run(engine, [])


def test_prompts_are_read_in_pieces_and_little_is_kept_of_them() -> None:
    engine, drafter = opened(1)
    prompt = [i % 7 for i in range(5 * PIECE + 9)]
    sequence = engine.admit(TokenSequence(0, list(prompt), SamplingParams(max_new_tokens=6)))
    engine.step()
    known = drafter.state.known[0]
    assert drafter.state.cache.lengths[0] >= 5 * PIECE - 1, "pieces are read as they come"
    assert len(known.hidden) <= PIECE + KEPT and known.end == len(prompt)
    run(engine, [sequence])
    assert drafter.drafts > 1 and drafter.accepted > 1
    assert len(drafter.state.known[0].hidden) <= KEPT + 4


def test_equal_prompts_are_read_once_and_read_no_token_again() -> None:
    engine, drafter = opened(3)
    prompt = [i % 5 for i in range(300)]
    sequences = [engine.admit(TokenSequence(row, list(prompt), SamplingParams(max_new_tokens=5))) for row in range(3)]
    run(engine, sequences)
    assert drafter.copies >= 2
    assert [s.reused for s in sequences] == [0, 299, 299]


@pytest.mark.parametrize("layers", [1, 3])
def test_a_text_that_goes_on_elsewhere_reads_a_token_of_each_layer_again(layers: int) -> None:
    engine, _ = opened(1, layers=layers)
    first = engine.admit(TokenSequence(0, [1, 2, 3] * 30, SamplingParams(max_new_tokens=3)))
    run(engine, [first])
    second = engine.admit(TokenSequence(0, [1, 2, 3] * 20 + [4, 4], SamplingParams(max_new_tokens=3)))
    assert second.reused == 60 - layers, "sixty tokens are shared, and the hidden states at the last of them are needed"
    run(engine, [second])


def test_a_pass_that_failed_is_drafted_again_from_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = opened(2)
    sequences = [engine.admit(TokenSequence(row, [3, row, 5], SamplingParams(max_new_tokens=12))) for row in range(2)]
    for _ in range(3):
        engine.step()
    verify = engine.verify

    def fails(*given: Any) -> Any:
        verify(*given)
        raise RuntimeError("lost")

    for _ in range(2):
        monkeypatch.setattr(engine, "verify", fails)
        with pytest.raises(RuntimeError, match="lost"):
            engine.step()
        monkeypatch.setattr(engine, "verify", verify)
    run(engine, sequences)
    assert sum(s.read_again for s in sequences) == 0


def test_a_second_draft_of_the_same_text_reads_nothing() -> None:
    engine, drafter = opened(1)
    sequence = engine.admit(TokenSequence(0, [1, 2, 3], SamplingParams(max_new_tokens=12)))
    engine.step()
    assert set(drafter.state.read([sequence])) == {0}
    assert drafter.state.read([sequence]) == {}
    assert noted(drafter.state.cache, 0) == expected(sequence.tokens)


def test_hidden_states_that_lack_are_no_matter_of_chance() -> None:
    """A row whose first tokens came from elsewhere, without hidden states."""
    target = Target(1)
    state = HeadState(runner(target))
    target.cache.lengths[0] = 5
    sequence, tree = TokenSequence(0, [1] * 8), TokenTree.chain([1, 1])
    hidden = torch.zeros(2, 1, SIZE)
    with pytest.raises(AssertionError, match="the head has read 0 tokens, and is told of number 5 on"):
        state.observe(Verified(sequence, tree, torch.arange(2), torch.empty(0), False, hidden))


def test_the_heads_cache_has_a_slot_for_each_node_of_the_targets() -> None:
    target = Target(2)
    cache = runner(target).cache
    assert (cache.rows, cache.capacity, cache.scratch) == (2, CAPACITY, target.cache.scratch)
