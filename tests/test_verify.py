"""Acceptance against a walk down the tree; both poles."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_tree import trees
from understudy.tree import TokenTree
from understudy.verify import accept


def walk(tree: TokenTree, choices: list[int]) -> tuple[list[int], int]:
    path = [0]
    while True:
        wanted = choices[path[-1]]
        below = [i for i in range(len(tree)) if int(tree.parents[i]) == path[-1] and int(tree.tokens[i]) == wanted]
        if not below:
            return path, wanted
        path.append(below[0])


def distinct(tree: TokenTree) -> TokenTree:
    """The same shape with every sibling a token of its own."""
    return TokenTree(torch.arange(len(tree)) % 7 + 10 * torch.arange(len(tree)), tree.parents)


@given(trees(), st.data())
def test_the_walk(tree: TokenTree, data: st.DataObject) -> None:
    tree = distinct(tree)
    below = [[int(tree.tokens[i]) for i in range(len(tree)) if int(tree.parents[i]) == node] for node in range(len(tree))]
    choices = [data.draw(st.sampled_from([*tokens, 999])) for tokens in below]
    path, bonus = accept(tree, torch.tensor(choices))
    assert (path.tolist(), bonus) == walk(tree, choices)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_a_drafter_that_is_always_right_is_accepted_to_its_end(tokens: list[int]) -> None:
    path, bonus = accept(TokenTree.chain(tokens), torch.tensor([*tokens[1:], 77]))
    assert path.tolist() == list(range(len(tokens))) and bonus == 77


@given(trees())
def test_a_drafter_that_is_never_right_costs_no_token(tree: TokenTree) -> None:
    path, bonus = accept(tree, torch.full((len(tree),), 1000))
    assert path.tolist() == [0] and bonus == 1000
