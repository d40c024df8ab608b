"""What the text or a trained head suggests after the accepted tokens, checked in the first level of a draft on a device.

The host has the text, and knows before the draft begins what followed its last tokens at an earlier place; a head that stands in
front of the draft is asked then. The chain goes to the device with all else that a draft is given, and is run behind the root in
one level. As far as each token is the draft's own first choice after the one before it, the chain is part of the tree; the rest is
dropped there, without asking the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.search_columns import CHILDREN, DEEP, FOUND, FROM, ROW, THROUGH, TOKEN, VALID, WHAT
from ..plan.widths import padded
from ..tree import Nodes
from .device_state import KEY, SCORES
from .growing_tree import Candidate, GrowingTree
from .packed_tensors import PackedTensors
from .policy import DraftPolicy
from .suggest import NOTHING, Checked, Suggester, Suggestion, Tip, worth_checking


class DeviceGuesses:
    """Chains for levels of at most `widest` nodes; `suggester` says them and learns how often they are right. None: there are
    none."""

    def __init__(self, suggester: Suggester | None, policy: DraftPolicy, widest: int):
        self.suggester = suggester
        self.policy = policy
        self.widest = widest

    def chosen(self, trees: Sequence[GrowingTree]) -> list[Suggestion]:
        """For each of `trees`, of roots alone, the tokens behind it that are likely to save more time than checking them takes."""
        found = [NOTHING] * len(trees)
        tips = {i: tip for i, tree in enumerate(trees) if (tip := self._tip(tree)).most > 0}
        if self.suggester is None or not tips:
            return found
        policy, roots = self.policy, len(trees)
        for (i, tip), said in zip(tips.items(), self.suggester.suggest(list(tips.values()), policy.pace), strict=True):
            found[i] = Suggestion(said.tokens[: tip.most], said.chances[: tip.most], said.sources[: tip.most])
        most = min(self.widest, policy.most_nodes) - roots
        return worth_checking(found, most, lambda chances: policy.pace.together(chances, roots, padded))

    def _tip(self, tree: GrowingTree) -> Tip:
        root = Candidate(1.0, -1, tree.tokens[0], 0, True)
        return Tip.of(tree, root, self.policy.limits.capacity, self.widest - 1)

    def learn(self, trees: Sequence[GrowingTree], suggestions: Sequence[Suggestion]) -> None:
        """Learn how much of each suggestion was right, from the `trees` that came of it."""
        for tree, suggestion in zip(trees, suggestions, strict=True):
            if suggestion.tokens and 0 in tree.children and self.suggester is not None:
                told = Checked(suggestion, agreed(tree, suggestion.tokens))
                tree.suggested.update(told.suggested)
                tree.agreed.update(told.right)
                tree.nodes_run += len(suggestion.tokens) - told.agreed
                self.suggester.learn(tree, told)


def give_guesses(given: PackedTensors, suggestions: Sequence[Suggestion]) -> int:
    """Hand over the chains in given["guess"]: the sequence's place in the draft, token and depth of each node. Returns how many."""
    lanes = [(row, token, i + 1) for row, found in enumerate(suggestions) for i, token in enumerate(found.tokens)]
    if lanes:
        given["guess"][:, : len(lanes)] = torch.tensor(lanes, dtype=torch.int64).T
    return len(lanes)


def agreed(tree: GrowingTree, tokens: Sequence[int]) -> int:
    """How many of `tokens`, a chain behind the root, were the draft's first choices one after another."""
    said = 0
    while said < len(tokens) and said in tree.children and tree.children[said][1][:1] == [tokens[said]]:
        said += 1
    return said


def put_guesses(guess: Tensor, candidates: Tensor, node: Tensor) -> None:
    """Make chains behind roots `candidates` [VALID + 1, g] of a level. guess: [3, g], as `give_guesses` puts it; node:
    state["node"]."""
    row, token, depth = guess
    for field, values in ((ROW, row), (FROM, depth - 1), (WHAT, token), (DEEP, depth)):
        candidates[field] = values
    candidates[VALID] = 1
    # Biases and penalties look at the tokens before a node.
    node[row, depth, TOKEN] = token


def straight(nodes: Nodes) -> Nodes:
    """Roots and chains behind them, each of which lies at the slot of its own position: nothing else says where they lie."""
    return replace(nodes, tail=nodes.tail[:, :0])


def keep_agreed(state: PackedTensors, rows: int, widest: int) -> None:
    """After a level of `rows` roots and chains behind them, at most `widest` nodes: of each chain the tokens stay that are the
    first choice after the one before, with the chance of all of them; the others are as if they had never been."""
    node = state["node"][:rows, :widest]
    numbers = state["node chances"][:rows, :widest, :SCORES]
    place = torch.arange(widest, device=node.device)
    right = (node[:, 1:, TOKEN] == node[:, :-1, CHILDREN]) & (node[:, :-1, FOUND] > 0)
    right = right & (place[1:] < state["count"][:rows, None])
    agreed = right.to(torch.int64).cumprod(1).sum(1)[:, None]
    state["count"][:rows] = torch.minimum(state["count"][:rows], agreed[:, 0] + 1)
    known = torch.nn.functional.pad(numbers[:, :-1, THROUGH].cumprod(1), (1, 0), value=1.0)
    kept = torch.where(numbers >= 0, numbers * known[:, :, None], numbers)
    column = torch.arange(SCORES, device=node.device)
    taken = (place < agreed)[:, :, None] & ((column == THROUGH) | (column == KEY))
    numbers.copy_(torch.where(taken | (place > agreed)[:, :, None], -1.0, kept))
