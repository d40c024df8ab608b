"""A tree while it grows: what becomes a node, what a guess turns out to be, what may still have children."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters.growing_tree import MOST_NODES, Candidate, GrowingTree
from understudy.sequence import TokenSequence
from understudy.tree import Nodes


def growing(limit: int = 9, stops: frozenset[int] = frozenset()) -> GrowingTree:
    sequence = TokenSequence(0, [7, 8], stop_ids=stops, limit=limit, prompt_length=2)
    return GrowingTree(sequence, 1, [8])


def test_a_candidate_becomes_a_node_and_is_in_the_pool_no_more() -> None:
    tree = growing()
    first, aside = Candidate(0.7, 0, 3, 1, True), Candidate(0.2, 0, 4, 1, False)
    tree.pool = [first, aside]
    tree.add(aside)
    tree.add(first)
    assert (tree.tokens, tree.parents, tree.pool, tree.deepest) == ([8, 4, 3], [-1, 0, 0], [], 1)
    assert tree.tree.tokens.tolist() == [8, 4, 3] and tree.tree.parents.tolist() == [-1, 0, 0]
    assert tree.path(Candidate(0.5, 2, 5, 2, True)) == [3, 5] and tree.past.tolist() == [7, 8]
    assert tree.path(Candidate(1.0, -1, 8, 0, True)) == [], "the root is the sequence's last token"


def test_a_guess_stays_if_it_is_the_first_choice_and_goes_with_all_after_it_if_not() -> None:
    tree = growing()
    tree.guess([3, 4, 5], 0)
    assert tree.parents == [-1, 0, 1, 2]
    tree.pool = [Candidate(0.1, 0, 3, 1, False), Candidate(0.9, 0, 3, 1, True)]
    assert tree.agree(1) == Candidate(0.9, 0, 3, 1, True) and tree.deepest == 1
    tree.pool.append(Candidate(0.8, 1, 9, 2, True))
    assert tree.agree(2) is None, "the proposer says 9 there"
    tree.drop([2, 3])
    assert (tree.tokens, tree.parents) == ([8, 3], [-1, 0])


def test_a_wrong_guess_with_nodes_behind_it_keeps_its_place_until_the_tree_is_done() -> None:
    tree = growing()
    tree.guess([3, 4], 0)
    tree.guess([5], 0)
    tree.pool = [Candidate(0.9, 0, 5, 1, True), Candidate(0.2, 0, 6, 1, False)]
    assert tree.agree(1) is None and tree.agree(2) is None and tree.agree(3) is not None
    tree.drop([1, 2])
    assert tree.tokens == [8, 3, 4, 5] and tree.size == 2
    tree.pool.append(Candidate(0.8, 3, 7, 2, True))
    tree.add(tree.pool[-1])
    tree.children = {0: ([1.0], [5]), 3: ([2.0], [7])}
    tree.favoured = {3: (4, 0)}
    tree.settle()
    assert (tree.tokens, tree.parents) == ([8, 5, 7], [-1, 0, 1]) and tree.size == 3
    assert tree.children == {0: ([1.0], [5]), 1: ([2.0], [7])} and tree.favoured == {1: (4, 0)}
    assert tree.pool == [Candidate(0.2, 0, 6, 1, False)]
    tree.settle()
    assert tree.tokens == [8, 5, 7]


def test_wrong_guesses_at_the_end_give_their_places_back() -> None:
    tree = growing()
    tree.guess([3], 0)
    tree.guess([4], 0)
    tree.drop([1])
    assert tree.tokens == [8, 3, 4]
    tree.drop([2])
    assert tree.tokens == [8] and not tree.wrong


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=12))
def test_only_children_that_could_be_used_have_children(limit: int, children: list[tuple[int, int]]) -> None:
    tree = growing(limit, stops=frozenset({0}))
    tree.pool = [Candidate(0.5, 0, token, depth, False) for token, depth in children]
    assert [(c.token, c.depth) for c in tree.expandable()] == [(t, d) for t, d in children if t and d < limit - 1]


@given(st.integers(2, 2 * MOST_NODES), st.integers(1, 30))
def test_room_ends_with_the_cache_or_the_most_a_tree_may_have(capacity: int, nodes: int) -> None:
    tree = growing()
    tree.guess([1] * (nodes - 1), 0)
    assert tree.room(capacity) == min(MOST_NODES, capacity - 1) - nodes
    tree.most_nodes = 5
    assert tree.room(capacity) == min(5, capacity - 1) - nodes


def test_a_tree_is_as_deep_as_the_text_may_become_and_the_caches_take_back() -> None:
    tree = growing(9)
    assert tree.levels == 8
    tree.most_levels = 3
    tree.pool = [Candidate(0.5, 0, 1, depth, False) for depth in range(1, 9)]
    assert tree.levels == 3 and [c.depth for c in tree.expandable()] == [1, 2]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 99), st.integers(0, 3)), min_size=1, max_size=12))
def test_nodes_of_a_level_are_those_of_the_whole_tree(levels: list[tuple[int, int, int]]) -> None:
    tree = growing(limit=99)
    for count, seed, wrong in levels:
        first, chance = len(tree.tokens), random.Random(seed)
        parents = [chance.randrange(first) for _ in range(count)]
        for parent in parents:
            tree.tokens.append(chance.randrange(50))
            tree.parents.append(parent)
        tree.guess([3] * wrong, chance.randrange(len(tree.tokens)))
        own, whole = tree.nodes(first), Nodes.of(tree.tree, 0, 1, first)
        names = ("tokens", "rows", "slots", "positions", "prefix")
        assert all(torch.equal(getattr(own, name), getattr(whole, name)) for name in names)
        wide = own.tail.shape[1]
        assert torch.equal(own.tail, whole.tail[:, :wide]) and bool((whole.tail[:, wide:] == -1).all())
        assert [own.slots_in_order(i).tolist() for i in range(len(own))] == [
            whole.slots_in_order(i).tolist() for i in range(len(whole))
        ]
        tree.drop(range(len(tree.tokens) - wrong, len(tree.tokens)))
