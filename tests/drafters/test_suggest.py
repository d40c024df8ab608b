"""What the text says: a draft says the same as without suggestions, in fewer levels, and what it would not have said is dropped;
tokens that the text speaks for get a bonus."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import Fixed
from tests.drafters.world import World, run
from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import LONGEST
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.drafters.suggest import Checked, HitRates, Origin, Other, Suggestion, TextSuggester, match
from understudy.drafters.tree_search import TreeSearch
from understudy.sequence import TokenSequence


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=3),
    st.integers(1, 50),
    st.integers(1, 6),
    st.integers(1, 40),
    st.frozensets(st.integers(0, 6), max_size=1),
)
def test_guesses_change_no_token_and_no_node(
    prompts: list[list[int]], count: int, period: int, misses: int, stop: frozenset[int]
) -> None:
    run(World(len(prompts), period, misses, TextSuggester()), prompts, count, stop)


@pytest.mark.parametrize("rows", [1, 2])
def test_guesses_save_levels(rows: int) -> None:
    worlds = [World(rows, 4, 30, suggester) for suggester in (TextSuggester(), None)]
    for world in worlds:
        run(world, [[1, 2, 3], [4]][:rows], 120)
    guessed, plain = worlds
    drawn = guessed.drafter.trees.values()
    assert any(tree.agreed["text"] for tree in drawn) and all(tree.agreed <= tree.suggested for tree in drawn)
    assert guessed.levels < (0.6 if rows == 1 else 0.7) * plain.levels and guessed.passes <= 1.2 * plain.passes
    assert isinstance(guessed.suggester, TextSuggester) and sum(guessed.suggester.rates.agreed) > 20


@pytest.mark.parametrize("agreed", range(6))
def test_each_source_learns_of_its_own_tokens_alone(agreed: int) -> None:
    sources = [Origin("head", 2), Origin("head", 4), Origin("text", 4), Origin("text", 4), Origin("text", 4)]
    found = Checked(Suggestion(range(5), [0.9] * 5, sources), agreed).chain
    assert sum(said for _, said, _ in found) == min(agreed, 5)
    assert sum(tried for _, _, tried in found) == min(agreed + 1, 5), "the first wrong one was asked for, those after it were not"
    assert [source for source, _, _ in found] == list(dict.fromkeys(sources[: agreed + 1]))
    assert all(said == tried for _, said, tried in found[:-1])


def test_others_are_checked_where_the_chain_was_right_up_to_them() -> None:
    others = [Other(after, 9 - after, chance, Origin("head", after)) for after, chance in ((0, 0.3), (2, 0.2), (2, 0.1), (3, 0.05))]
    whole = Suggestion([1, 2, 3], [0.9, 0.6, 0.4], [Origin("text", 5)] * 3, others)
    told = Checked(whole, 2, others[1])
    assert told.others == [(Origin("head", 0), False), (Origin("head", 2), True), (Origin("head", 2), False)]
    assert told.right == ["text", "text", "head"] and told.suggested == ["text"] * 3 + ["head"] * 4
    assert whole.first(2).others == others[:1] and whole.first(3).others == others[:3], "no deeper than the chain may be"
    part = whole.likelier(0.2, 9)
    assert (part.tokens, part.others) == ([1, 2, 3], others[:2])
    assert whole.likelier(0.5, 9).others == [] and whole.likelier(0.0, 4).others == others[:1]


@given(st.floats(0.1, 0.9), st.integers(1, 30))
def test_a_hit_rate_goes_from_what_is_believed_to_what_is_seen(chance: float, times: int) -> None:
    rates = HitRates.believing([chance, chance], 3.0)
    assert rates.chance(0) == pytest.approx(chance)
    for _ in range(times):
        rates.learn(0, 3, 4)
    assert abs(rates.chance(0) - 0.75) < abs(chance - 0.75) + 1e-9 and rates.chance(1) == pytest.approx(chance)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, LONGEST))
def test_the_longest_and_latest_match_is_found(text: list[int], longest: int) -> None:
    places = [
        (size, end)
        for size in range(1, longest + 1)
        for end in range(size, len(text))
        if text[end - size : end] == text[len(text) - size :]
    ]
    assert match(text, longest) == max(places, default=(0, 0))


def test_the_text_speaks_for_what_stood_there_before() -> None:
    sequence = TokenSequence(0, [5, 6, 7, 9, 5, 6], limit=20, prompt_length=6)
    tree = GrowingTree(sequence, 5, [6])
    suggester = TextSuggester()
    root = Candidate(1.0, -1, 6, 0, True)
    assert suggester.favoured(tree, root) == (7, 2)
    tree.guess([7], 0)
    assert suggester.favoured(tree, Candidate(0.5, 0, 7, 1, True)) == (9, 3), "the path counts as text"
    assert suggester.favoured(tree, Candidate(0.5, 0, 8, 1, False)) == (-1, 0)


def test_a_bonus_makes_the_repeated_token_the_first_choice() -> None:
    policy = DraftPolicy(Limits(100))
    search = TreeSearch(Fixed(0, 1.0), policy, TextSuggester())
    sequence = TokenSequence(0, [5, 6, 7, 5, 6], limit=20, prompt_length=5)
    tree = GrowingTree(sequence, 4, [6])
    root = Candidate(1.0, -1, 6, 0, True)
    search._add_children(tree, 0, root, [2.0, 1.5, 0.0], [3, 7, 4])
    assert tree.children[0] == ([2.5, 2.0, 0.0], [7, 3, 4]) and tree.favoured == {0: (2, 0)}
    assert [candidate.token for candidate in tree.pool if candidate.spine] == [7]
    policy.calibrations[False].bonus[2] = 0.25
    other = GrowingTree(sequence, 4, [6])
    search._add_children(other, 0, root, [2.0, 1.5, 0.0], [3, 7, 4])
    assert other.children[0] == ([2.0, 1.75, 0.0], [3, 7, 4]) and other.favoured == {0: (2, 1)}
