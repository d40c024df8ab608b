"""The search on the processor: any suggester may stand in front of the proposer, and no tree gets larger than it may."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.drafters.fixed import CAPACITY, VOCABULARY, Fixed, costing, device, draft, host
from tests.drafters.plain_search import Recorded
from tests.drafters.world import World, run
from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import Pace
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.search import SearchDrafter
from understudy.drafters.suggest import Checked, Origin, Other, Promise, Suggestion, Tip
from understudy.drafters.tree_search import TreeSearch
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes


class Head:
    """Stands for a trained head in front of the proposer: it says `following(text)` again and again, and `instead(text)` in the
    place of each of these tokens."""

    def __init__(
        self, following: Callable[[list[int]], int], chance: float, longer: int = 0,
        instead: Callable[[list[int]], list[int]] = lambda text: [],
    ):  # fmt: skip
        self.following, self.chance, self.longer, self.instead = following, chance, longer, instead
        self.agreed = self.checked = self.others = 0
        self.seen: dict[int, int] = {}

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        return -1, 0

    def promise(self, tip: Tip, pace: Pace) -> Promise:
        return Promise(self._after(tip).chances)

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        return [self._after(tip) for tip in tips]

    def _after(self, tip: Tip) -> Suggestion:
        text = [*tip.tree.past.tolist(), *tip.tree.path(tip.candidate)]
        start = len(text)
        others = []
        for after in range(tip.most + self.longer):
            token = self.following(text)
            chance = 0.9 * self.chance ** (after + 1)
            others += [Other(after, other, chance, Origin("head", start)) for other in self.instead(text) if other != token]
            text.append(token)
        tokens = text[start:]
        chances = [self.chance ** (i + 1) for i in range(len(tokens))]
        return Suggestion(tokens, chances, [Origin("head", start)] * len(tokens), others)

    def saw(self, tree: GrowingTree, places: Sequence[int]) -> None:
        self.seen[tree.sequence.row] = self.seen.get(tree.sequence.row, 0) + len(places)

    def learn(self, tree: GrowingTree, checked: Checked) -> None:
        suggestion, agreed = checked.suggestion, checked.agreed
        assert suggestion.sources[0].kind > 0 and 0 <= agreed <= len(suggestion.tokens)
        assert checked.other is None or checked.other.after == agreed
        assert tree.agreed["head"] <= tree.suggested["head"]
        self.agreed += agreed
        self.checked += min(agreed + 1, len(suggestion.tokens))
        self.others += checked.other is not None


def test_a_head_that_is_right_and_says_too_much_saves_most_levels() -> None:
    plain = World(1, 4, 30, None)
    run(plain, [[1, 2, 3]], 120)
    head = Head(lambda text: helped.best(text)[0], 0.97, longer=6)
    helped = World(1, 4, 30, head)
    run(helped, [[1, 2, 3]], 120)
    assert helped.levels < 0.4 * plain.levels and helped.passes <= 1.2 * plain.passes
    assert head.agreed == head.checked > 50, "it says what the draft says"


def test_a_token_in_the_place_of_a_wrong_one_saves_levels() -> None:
    """A head that knows each token but says it second: nearly every level gives one token more."""
    levels, said = [], []
    plain = World(1, 4, 30, None)
    for instead in (lambda text: [], lambda text: [3, plain.best(text)[0]]):
        head = Head(lambda text: plain.best(text)[1], 0.9, instead=instead)
        world = World(1, 4, 30, head)
        run(world, [[1, 2, 3]], 120)
        levels.append(world.levels)
        said.append(head.others)
    assert said[0] == 0 < 30 < said[1] and levels[1] < 0.65 * levels[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 3), st.integers(0, 5), st.floats(0.1, 0.99), st.integers(0, 4))
def test_a_head_that_babbles_and_says_too_much_changes_no_token_and_no_node(
    seed: int, rows: int, longer: int, chance: float, others: int
) -> None:
    def instead(text: list[int]) -> list[int]:
        return random.Random(f"{text} {seed}").sample(range(7), others)

    head = Head(lambda text: random.Random(f"{seed} {text}").randrange(7), chance, longer, instead)
    run(World(rows, 3, 10, head), [[1, 2, 3], [4], [5, 5]][:rows], 40)
    assert head.agreed <= head.checked


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99), st.integers(1, 3), st.integers(1, 20), st.integers(4, 60), st.integers(0, 9), st.sampled_from([0, 3])
)
def test_trees_keep_to_the_pass_the_cache_and_the_tokens_that_are_left(
    seed: int, rows: int, limit: int, nodes: int, near: int, width: int
) -> None:
    model = Fixed(seed, 3.0)
    policy = DraftPolicy(Limits(CAPACITY, nodes), Shape(width, width), Pace({1: 0.01, 8: 0.012}, rate=1.0))
    drafter = SearchDrafter(model, TreeSearch(model, policy), policy)
    sequences = [TokenSequence(i, [seed % VOCABULARY], limit=limit, prompt_length=1) for i in range(rows)]
    trees = draft(drafter, sequences, [CAPACITY - 1 - near] * rows)
    for sequence, tree in zip(sequences, trees, strict=True):
        assert tree.tokens[0] == sequence.tokens[-1]
        assert len(tree) <= 1 + near and int(tree.depths.max()) <= max(limit - 1, 0)
        children = list(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
        assert len(set(children)) == len(children), "no child is there twice"
    assert width or sum(map(len, trees)) <= max(nodes, rows)
    asked = [int(slot) for nodes in model.ran for slot in nodes.slots]
    assert all(slot < CAPACITY for slot in asked)


@pytest.mark.parametrize("width", [1, 3])
def test_a_forced_shape_is_kept_whatever_it_costs(width: int) -> None:
    model, policy = Fixed(0, 3.0), DraftPolicy(Limits(CAPACITY), Shape(width, 4), Pace({1: 9.0}, rate=1e6))
    (tree,) = draft(SearchDrafter(model, TreeSearch(model, policy), policy), [TokenSequence(0, [1], limit=99)], [5])
    assert len(tree) == 1 + 4 * width and int(tree.depths.max()) == 4
    assert tree.counts.levels == 4
    assert [len(nodes) for nodes in model.ran] == [1, width, width, width], "the last level rides along, and is not run"


class Uneven(Fixed):
    """The text in cache row 0 is easy to guess, those in the others are hard."""

    def forward(self, nodes: Nodes) -> Tensor:
        sure = nn.functional.one_hot((nodes.tokens + 1) % VOCABULARY, VOCABULARY) * 9.0
        return torch.where((nodes.rows == 0)[:, None], sure, 0.4 * super().forward(nodes))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(12, 90), st.sampled_from([host, device]))
def test_nodes_go_to_the_texts_that_are_easy_to_guess_within_one_budget(
    seed: int, budget: int, search: Callable[[Fixed, DraftPolicy], SearchDrafter]
) -> None:
    policy = DraftPolicy(Limits(CAPACITY, budget), pace=costing([0.01] * 7, 5.0))
    sequences = [TokenSequence(row, [row + 1], SamplingParams(max_new_tokens=300), limit=300) for row in range(3)]
    trees = draft(search(Uneven(seed, 2.0), policy), sequences, [0, 0, 0])
    easy, *hard = map(len, trees)
    assert sum(map(len, trees)) <= budget and min(hard) >= 1
    assert easy > max(hard), "nodes of a text that is hard to guess took the place of likelier ones"
    alone = draft(search(Uneven(seed, 2.0), policy), sequences[1:2], [0])
    assert len(alone[0]) > hard[0], "alone, the hard text has them all"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(3, 30), st.booleans(), st.floats(5, 60),
    st.dictionaries(st.integers(1, 24), st.floats(0.004, 0.03), min_size=1, max_size=8),
)  # fmt: skip
def test_trees_are_those_of_the_plain_rules(rows: int, misses: int, guesses: bool, rate: float, costs: dict[int, float]) -> None:
    worlds = [Recorded(rows, misses, costs, rate, guesses, plain) for plain in (True, False)]
    for world in worlds:
        run(world, [[1, 2, 3], [4], [5, 5]][:rows], 60)
    plain, quick = (world.grown for world in worlds)
    assert plain == quick and len(plain) > 2 and worlds[0].levels == worlds[1].levels
    assert worlds[0].drafter.policy.calibrations[False].belief == worlds[1].drafter.policy.calibrations[False].belief


def test_plain_rules_grow_trees_that_branch_and_check_the_text() -> None:
    world = Recorded(2, 10, {1: 0.01, 8: 0.012}, 20.0, guesses=True, plain=True)
    run(world, [[1, 2, 3], [4]], 60)
    assert any(len(set(tree.parents)) < len(tree.parents) for tree in world.grown), "some node has two children"
    assert world.passes < 60 and max(len(tree.tokens) for tree in world.grown) > 16
