"""TextSuggester from the text: the draft says the same as without them, in fewer levels; what it would not have said is dropped."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.cache import Cache, LayerShape
from understudy.drafters.pace import Pace
from understudy.drafters.substitute import Substitute
from understudy.drafters.suggest import LONGEST, match
from understudy.drafters.tree_search import NO_SHAPE, Limits, Shape, TreeSearch
from understudy.engine import Choose, Engine
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

VOCABULARY = 7
COSTS = {1: 0.01, 8: 0.012}


class Steady(Pace):
    """Costs are as given: this world's own say nothing."""

    def record_level(self, width: int, seconds: float) -> None: ...


def ranked(text: Sequence[int], period: int) -> list[int]:
    """All tokens, the likeliest first, after `text`: it repeats itself, but for surprises."""
    order = list(range(VOCABULARY))
    random.Random(f"surprise {list(text)}" if len(text) % 11 == 0 else len(text) % period).shuffle(order)
    return order


class World(Cache):
    """Keys are tokens, so each model reads its text where the slots say. The draft is wrong in one of `misses` places."""

    def __init__(self, rows: int, period: int, misses: int, *, shape: Shape = NO_SHAPE):
        super().__init__([LayerShape(1, 1, 1)], rows, 320, torch.float32)
        self.period, self.misses, self.levels, self.passes = period, misses, 0, 0
        limits = Limits(320, 60)
        self.search = TreeSearch(self.draft, Steady(dict(COSTS), rate=20.0), limits, shape)

    def read(self, nodes: Nodes, node: int) -> list[int]:
        slots = nodes.slots_in_order(node)
        return [int(token) for token in self.layers[0].keys[int(nodes.rows[node]), 0, slots, 0]]

    def put(self, nodes: Nodes) -> None:
        self.layers[0].write(nodes, nodes.tokens.float()[:, None, None], torch.zeros(len(nodes), 1, 1))

    def best(self, text: Sequence[int]) -> list[int]:
        """The draft's order of tokens."""
        order = ranked(text, self.period)
        wrong = random.Random(f"miss {text}").random() * self.misses < 1
        return [order[1], order[0], *order[2:]] if wrong else order

    def draft(self, nodes: Nodes) -> Tensor:
        self.levels += 1
        self.put(nodes)
        logits = torch.zeros(len(nodes), VOCABULARY)
        for node in range(len(nodes)):
            logits[node, self.best(self.read(nodes, node))] = torch.tensor([6.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.1])
        return logits

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> Tensor:
        self.passes += 1
        self.put(nodes)
        logits = torch.zeros(len(wanted), VOCABULARY)
        for place, node in enumerate(wanted.tolist()):
            logits[place, ranked(self.read(nodes, node), self.period)[0]] = 1
        return choose(logits, 0)

    def check(self, row: TokenSequence) -> None:
        """All that is known of a branch's nodes is what the draft says after their texts."""
        branch = self.search.trees[row.row]
        texts: list[list[int]] = []
        for i, (token, parent) in enumerate(zip(branch.tokens, branch.parents, strict=True)):
            texts.append([*(texts[parent] if i else row.tokens[:-1]), token])
            assert i not in branch.children or branch.children[i][1] == self.best(texts[i])[:4]
            assert i == 0 or token in branch.children[parent][1], "a node that the draft did not say"
        assert len({tuple(text) for text in texts}) == len(texts), "a node is there twice"
        assert branch.deepest == max(len(text) for text in texts) - len(row.tokens)
        taken = {(parent, token) for parent, token in zip(branch.parents, branch.tokens, strict=True)}
        assert not taken & {(candidate.parent, candidate.token) for candidate in branch.pool}


def run(world: World, prompts: Sequence[list[int]], count: int, stop: frozenset[int] = frozenset()) -> None:
    """Generates, and compares with the exact text."""
    drafter = Substitute(world.search, world.lengths)
    engine = Engine(world.verify, world, drafter)
    params = SamplingParams(max_new_tokens=count)
    rows = [engine.admit(TokenSequence(i, list(p), params, stop)) for i, p in enumerate(prompts)]
    draft = drafter.draft

    def checked(going: Sequence[TokenSequence]) -> object:
        trees = draft(going)
        for row, tree in zip(going, trees, strict=True):
            world.check(row)
            assert int(tree.depths.max()) < max(row.remaining, 1)
        assert sum(map(len, trees)) <= 60
        return trees

    drafter.draft = checked  # type: ignore[method-assign,assignment]
    while engine.sequences:
        engine.step()
    for row, prompt in zip(rows, prompts, strict=True):
        text = list(prompt)
        while len(text) < len(prompt) + count and not (len(text) > len(prompt) and text[-1] in stop):
            text.append(ranked(text, world.period)[0])
        assert row.tokens == text


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
    run(World(len(prompts), period, misses), prompts, count, stop)


@pytest.mark.parametrize("rows", [1, 2])
def test_guesses_save_levels(rows: int) -> None:
    worlds = [World(rows, 4, 30, shape=Shape(guess=guess)) for guess in ("on", "off")]
    for world in worlds:
        run(world, [[1, 2, 3], [4]][:rows], 120)
    guessed, plain = worlds
    assert guessed.levels < (0.6 if rows == 1 else 0.7) * plain.levels and guessed.passes <= 1.2 * plain.passes
    assert guessed.search.suggester is not None and sum(guessed.search.suggester.agreed) > 20


def test_a_forced_shape_takes_nothing_from_the_text() -> None:
    world = World(1, 4, 30, shape=Shape(2, 5))
    run(world, [[1, 2, 3]], 40)
    assert world.search.suggester is None and world.levels >= 5 * (world.passes - 2)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, LONGEST))
def test_the_longest_and_latest_match_is_found(text: list[int], longest: int) -> None:
    places = [
        (size, end)
        for size in range(1, longest + 1)
        for end in range(size, len(text))
        if text[end - size : end] == text[len(text) - size :]
    ]
    assert match(text, longest) == max(places, default=(0, 0))
