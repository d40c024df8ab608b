"""A head that runs piece by piece, in a cache of its own, gives what it gives in one go, as it is trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.drafters.heads import CAPACITY, Target
from understudy.drafters.head_runner import HeadRunner
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.files import built
from understudy.heads.layers import layer_shapes
from understudy.models.taps import BEFORE_NORM
from understudy.tree import Nodes, TokenTree

SIZE, VOCABULARY, LENGTH = 32, 40, 20
LAYER = {
    "hidden_size": SIZE, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256,
}  # fmt: skip


class Scored(Target):
    """A target with random embeddings and a random output head."""

    def __init__(self) -> None:
        super().__init__(2)
        torch.manual_seed(3)
        self.vocabulary = VOCABULARY
        self.table = torch.randn(VOCABULARY, SIZE)
        self.embed: Callable[[Tensor], Tensor] = self.table.__getitem__
        self.score: Callable[[Tensor], Tensor] = nn.Linear(SIZE, VOCABULARY).requires_grad_(False)


def eagle(**changes: Any) -> HeadConfig:
    facts = TargetFacts(SIZE, VOCABULARY)
    return HeadConfig("eagle", facts, **{"taps": (-1,), "layers": 2, "layer": LAYER, **changes})


def made(config: HeadConfig) -> tuple[DraftHead, HeadRunner, Any]:
    torch.manual_seed(1)
    head = built(config).requires_grad_(False).eval()
    target: Any = Scored()
    return head, HeadRunner(head, layer_shapes(config), target, torch.float32), target


def in_one_go(head: DraftHead, target: Any, hidden: Tensor, tokens: list[int]) -> Tensor:
    """States [n, SIZE] of `tokens` 1 to n of a text, as in training."""
    n = len(tokens)
    places = Places(torch.arange(n)[None], torch.ones(n, n, dtype=torch.bool).tril()[None, None])
    return head.begin(hidden[None], target.table[tokens][None], places)[0]


def test_pieces_of_a_text_are_the_text() -> None:
    head, runner, target = made(eagle())
    text = torch.randint(VOCABULARY, (LENGTH + 1,)).tolist()
    hidden = torch.randn(LENGTH, 1, SIZE)
    whole = in_one_go(head, target, hidden, text[1:])
    for row, pieces in enumerate(([LENGTH], [1, 7, 1, 11])):
        at = 0
        for count in pieces:
            nodes = Nodes.of(TokenTree.chain(text[1 + at : 1 + at + count]), row, 1 + at)
            states = runner.begin(nodes, hidden[at : at + count])
            torch.testing.assert_close(states, whole[at : at + count])
            runner.cache.keep(row, torch.arange(count))
            at += count
        assert runner.cache.lengths[row] == LENGTH


def test_nodes_of_two_trees_run_side_by_side() -> None:
    """Each node sees its own path and no other; its parent's state takes the place of hidden states."""
    head, runner, target = made(eagle())
    text = torch.randint(VOCABULARY, (LENGTH + 1,)).tolist()
    hidden = torch.randn(LENGTH, 1, SIZE)
    trees = {0: TokenTree.of([text[9], 3, 4, 5, 6], [-1, 0, 0, 2, 1]), 1: TokenTree.of([text[5], 7, 8], [-1, 0, 1])}
    lengths = {0: 9, 1: 5}
    states: dict[int, list[Tensor]] = {}
    for row, length in lengths.items():
        read = runner.begin(Nodes.of(TokenTree.chain(text[1 : length + 1]), row, 1), hidden[:length])
        runner.cache.keep(row, torch.arange(length))
        states[row] = [read[-1]]
    for first, last in ((1, 2), (2, 3), (3, 5)):
        rows = [row for row, tree in trees.items() if len(tree) > first]
        parts = [Nodes.of(trees[row], row, lengths[row])[first:last] for row in rows]
        parents = [states[row][int(parent)] for row in rows for parent in trees[row].parents[first:last]]
        found = runner.follow(Nodes.join(parts), torch.stack(parents), 1)
        for row, part in zip(rows, torch.split(found, [len(part) for part in parts]), strict=True):
            states[row] += list(part)
    for row, path in ((0, [1, 4]), (0, [2, 3]), (1, [1, 2])):
        length = lengths[row]
        tokens = [*text[1 : length + 1], *(int(trees[row].tokens[node]) for node in path)]
        given = torch.cat([hidden[:length], *(states[row][parent][None, None] for parent in [0, *path[:-1]])])
        torch.testing.assert_close(states[row][path[-1]], in_one_go(head, target, given, tokens)[-1])


def test_logits_are_of_the_targets_tokens_whatever_the_head_can_say() -> None:
    states = torch.randn(3, SIZE)
    _, runner, target = made(eagle())
    torch.testing.assert_close(runner.logits(states, 0), target.score(states))
    head, runner, _ = made(eagle(draft_vocab_size=5))
    assert head.token_map is not None and head.output is not None
    head.token_map.copy_(torch.tensor([4, 39, 0, 17, 8]))
    logits = runner.logits(states, 1)
    assert logits.shape == (3, VOCABULARY)
    torch.testing.assert_close(logits[:, [4, 39, 0, 17, 8]], head.output(states))
    assert int(logits.isneginf().sum()) == 3 * (VOCABULARY - 5)


def test_a_head_may_bring_its_own_embeddings() -> None:
    config = eagle(own_embedding=True)
    head, runner, target = made(config)
    assert head.embedding is not None
    head.embedding.normal_()
    nodes, hidden = Nodes.of(TokenTree.chain([7, 8]), 0, 1), torch.randn(2, 1, SIZE)
    target.table = head.embedding
    torch.testing.assert_close(runner.begin(nodes, hidden), in_one_go(head, target, hidden, [7, 8]))


@pytest.mark.parametrize("kind", ["medusa"])
def test_a_head_without_layers_has_no_cache(kind: str) -> None:
    config = HeadConfig(kind, TargetFacts(SIZE, VOCABULARY), taps=(BEFORE_NORM,), heads=3)
    _, runner, _ = made(config)
    hidden = torch.randn(2, 1, SIZE)
    states = runner.begin(Nodes.of(TokenTree.chain([7, 8]), 0, 1), hidden)
    assert torch.equal(runner.follow(Nodes.of(TokenTree.chain([9]), 0, 3), states[-1:], 2), hidden[-1])
    assert runner.cache.nbytes == 0 and runner.cache.capacity == CAPACITY and runner.head.current.under_way is None
