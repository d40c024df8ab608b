"""A world in which texts repeat themselves: an exact model, and a draft model that is right most of the time."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.cache import Cache
from understudy.devices.processor import Processor
from understudy.drafters.pace import RANKS, Pace
from understudy.drafters.policy import NO_SHAPE, DraftPolicy, Limits, Shape
from understudy.drafters.proposer import ModelProposer
from understudy.drafters.search import SearchDrafter
from understudy.drafters.suggest import Suggester, TextSuggester, match
from understudy.drafters.tree_search import TreeSearch
from understudy.engine import Choose, Engine
from understudy.layer_states import LayerShape
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

VOCABULARY = 7
# The draft's logits of all tokens, best first.
SCORES = (6.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
COSTS = {1: 0.01, 8: 0.012}


class Steady(Pace):
    """Costs and the rate are as given: the time that this world takes says nothing."""

    def record_level(self, width: int, seconds: float) -> None: ...

    def record_round(self, tokens: int, seconds: float) -> None: ...


def ranked(text: Sequence[int], period: int) -> list[int]:
    """All tokens, the likeliest first, after `text`: it repeats itself, but for surprises."""
    order = list(range(VOCABULARY))
    random.Random(f"surprise {list(text)}" if len(text) % 11 == 0 else len(text) % period).shuffle(order)
    return order


class World(Cache):
    """An exact model and its draft. Keys are tokens, so each model reads its text where the slots say.

    The draft is wrong in one of `misses` places."""

    def __init__(self, rows: int, period: int, misses: int, suggester: Suggester | None, shape: Shape = NO_SHAPE):
        super().__init__([LayerShape(1, 1, 1)], rows, 320, torch.float32)
        self.cache, self.device = self, Processor(threads=1)
        self.period, self.misses, self.levels, self.passes = period, misses, 0, 0
        self.suggester = suggester
        policy = DraftPolicy(Limits(320, 60), shape, Steady(dict(COSTS), rate=20.0))
        proposer = ModelProposer(self)
        self.drafter = SearchDrafter(proposer, TreeSearch(proposer, policy, suggester), policy)

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
            logits[node, self.best(self.read(nodes, node))] = torch.tensor(SCORES)
        return logits

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.passes += 1
        self.put(nodes)
        logits = torch.zeros(len(wanted), VOCABULARY)
        for place, node in enumerate(wanted.tolist()):
            logits[place, ranked(self.read(nodes, node), self.period)[0]] = 1
        return choose(logits, 0), None

    def favoured(self, row: TokenSequence, text: list[int]) -> list[int]:
        """The draft's best tokens after `text`, once the one that the text speaks for has its bonus."""
        order = self.best(text)[:RANKS]
        size, end = match(text)
        token = text[end] if size else -1
        text_suggester = getattr(self.suggester, "text", self.suggester)
        if not isinstance(text_suggester, TextSuggester) or token not in order:
            return order
        bonus = self.drafter.policy.calibration(row).bonus[size]
        scores = {t: SCORES[rank] + bonus * (t == token) for rank, t in enumerate(order)}
        return sorted(order, key=lambda t: -scores[t])

    def check(self, row: TokenSequence) -> None:
        """All that is known of a tree's nodes is what the draft says after their texts."""
        tree = self.drafter.trees[row.row]
        texts: list[list[int]] = []
        for i, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            texts.append([*(texts[parent] if i else row.tokens[:-1]), token])
            assert i not in tree.children or tree.children[i][1] == self.favoured(row, texts[i])
            assert i == 0 or token in tree.children[parent][1], "a node that the draft did not say"
        assert len({tuple(text) for text in texts}) == len(texts), "a node is there twice"
        assert tree.deepest == max(len(text) for text in texts) - len(row.tokens)
        taken = {(parent, token) for parent, token in zip(tree.parents, tree.tokens, strict=True)}
        assert not taken & {(candidate.parent, candidate.token) for candidate in tree.pool}


def run(world: World, prompts: Sequence[list[int]], count: int, stop: frozenset[int] = frozenset()) -> None:
    """Generates, and compares with the exact text."""
    drafter = world.drafter
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
