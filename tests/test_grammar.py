"""What may follow a place depends on the text that leads there alone, in whatever order places are asked for."""

from __future__ import annotations

import random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.schemas import constraints
from tests.tiny import byte_tokenizer
from understudy import Constraint
from understudy.grammar import GrammarState
from understudy.grammar_compiler import GrammarCompiler

VOCABULARY = 260  # four tokens more than the tokenizer knows
ENDS, STOPS = {0}, {70, 258}
# The same parts in places after which other tokens follow.
SHARED = Constraint.grammar('start: pair+\npair: "a" N "x" | "b" N "y" | "(" start ")"\nN: /[0-9]{1,3}/')
COMPILER = GrammarCompiler(byte_tokenizer(), VOCABULARY)


def fresh(constraint: Constraint, text: list[int]) -> GrammarState:
    """A state that has taken `text`, one token after another, and was asked for nothing else."""
    state = COMPILER.state(constraint, ENDS, STOPS)
    for token in text:
        state.take(token)
    return state


def follow(state: GrammarState, chance: random.Random, path: list[int]) -> int:
    """Any token that may follow, now and then one that may not."""
    allowed = state.allowed(path).nonzero()[0].tolist()
    return chance.choice(allowed) if allowed and chance.random() < 0.8 else chance.randrange(256)


@given(constraints(), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, phases=[Phase.generate])
def test_every_place_is_as_the_text_that_ends_with_it(constraint: Constraint, seed: int) -> None:
    chance = random.Random(seed)
    state = fresh(constraint, [])
    text: list[int] = []
    for _ in range(6):
        paths: list[list[int]] = [[]]
        for _ in range(8):
            parent = chance.choice(paths)
            paths.append([*parent, follow(state, chance, parent)])
        chance.shuffle(paths)
        found = {tuple(path): state.allowed(path).copy() for path in paths}
        for path, allowed in found.items():
            sound = all(found_before(state, path[:i])[token] for i, token in enumerate(path))
            ended = any(token in ENDS | STOPS for token in path)
            if sound and not ended:
                assert (fresh(constraint, [*text, *path]).allowed([]) == allowed).all()
            elif not sound:
                assert not allowed.any(), "a path that breaks the grammar is never gone on with"
        ordinary = [token for token in state.allowed([]).nonzero()[0].tolist() if token not in ENDS | STOPS]
        if not ordinary:
            break
        text.append(chance.choice(ordinary))
        assert state.take(text[-1]) == fresh(constraint, text).complete


def found_before(state: GrammarState, path: tuple[int, ...]) -> list[bool]:
    return list(state.allowed(path))


def test_ends_are_allowed_where_the_text_is_whole_alone() -> None:
    """Token 0 is an end of the model and reads "!"; 70 is "g" and a caller's; 258 means nothing to the tokenizer."""
    tokenizer = byte_tokenizer()
    g, a = tokenizer("g")["input_ids"][0], tokenizer("a")["input_ids"][0]
    assert g == 70
    state = fresh(Constraint.regex("[!g]a*"), [])
    assert state.allowed([]).nonzero()[0].tolist() == [g]
    assert state.allowed([g]).nonzero()[0].tolist() == sorted([0, a, g, 258])
    assert not state.complete and not state.trouble
    state = fresh(Constraint.regex("ga?"), [g])
    assert not state.complete and state.take(a)
    dead = fresh(Constraint.regex("a!"), [a])
    assert "no token" in dead.trouble and not dead.complete


def test_a_path_ends_with_an_end_of_the_model_though_it_reads_like_text() -> None:
    a, b = (byte_tokenizer()(letter)["input_ids"][0] for letter in "ab")
    state = fresh(Constraint.regex("a([ab][^a])*"), [a])
    assert not state.allowed([b])[0] and state.allowed([b])[b]
    assert not state.allowed([b, 0]).any() and not state.allowed([b, 0, b]).any()
    assert state.allowed([b, b]).any()


def test_a_path_knows_nothing_of_what_another_one_needs() -> None:
    """Both paths have read as many parts, and stand in the same one; what follows it they do not share."""
    constraint = Constraint.grammar('start: "a" N "x" | "b" N "y"\nN: /[0-9]{1,3}/')
    a, b, x, y, one = (token for letter in "abxy1" for token in byte_tokenizer()(letter)["input_ids"])
    state = fresh(constraint, [])
    assert state.allowed([a, one])[x] and not state.allowed([a, one])[y]
    assert state.allowed([b, one])[y] and not state.allowed([b, one])[x]
    state.take(b)
    state.take(one)
    assert (state.allowed([]) == fresh(constraint, [b, one]).allowed([])).all()
    assert state.take(y)


@given(st.one_of(st.just(SHARED), constraints()), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, phases=[Phase.generate])
def test_a_text_is_held_to_its_grammar_whatever_was_looked_at_beside_it(constraint: Constraint, seed: int) -> None:
    """Paths are looked at at random before each token: the mask is that of a state which was asked for nothing else."""
    chance = random.Random(seed)
    state, alone = fresh(constraint, []), fresh(constraint, [])
    for _ in range(30):
        for _ in range(4):
            path: list[int] = []
            for _ in range(chance.randrange(6)):
                path.append(follow(state, chance, path))
        assert (state.allowed([]) == alone.allowed([])).all()
        ordinary = [token for token in alone.allowed([]).nonzero()[0].tolist() if token not in ENDS | STOPS]
        if not ordinary:
            return
        token = chance.choice(ordinary)
        assert state.take(token) == alone.take(token)


def test_paths_cost_what_lies_between_them() -> None:
    """A place that was asked for is not computed again but where two paths part, nor by the text that went on with it."""
    state = fresh(Constraint.regex("[abc]{1,9}"), [])
    a, b, c = byte_tokenizer()("abc")["input_ids"]
    computed: list[int] = []
    compute = state._computed
    state._computed = lambda: computed.append(1) or compute()  # type: ignore[method-assign, func-returns-value]
    for path in ([], [a], [a, b], [c], [a, b], [a], []):
        state.allowed(path)
    assert len(computed) == 5
    state.take(a)
    assert len(computed) == 6
    state.allowed([b])
    state.allowed([])
    assert len(computed) == 6
