"""What a node finds before it is of its own path, in any company, after a tree is accepted in part, in copies and from points."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_tree import path_to, trees
from understudy.cache import Cache
from understudy.kernels.recurrence_cpu import fold
from understudy.layer_states import LayerShape
from understudy.recurrent import RecurrentShape
from understudy.token_history import TokenHistory
from understudy.tree import AcceptedPath, Nodes, TokenTree

BEHIND = 3


def last_of(text: list[int]) -> list[int]:
    """By definition: the last tokens of `text`, -1 before its beginning."""
    return [-1] * (BEHIND + 1 - len(text)) + text[-BEHIND - 1 :]


@settings(deadline=None)
@given(trees(), st.integers(0, 9), st.data())
def test_a_node_finds_its_own_path(tree: TokenTree, length: int, data: st.DataObject) -> None:
    state, text = TokenHistory(BEHIND, 2, 64), list(range(100, 100 + length))
    if text:
        state.before(Nodes.of(TokenTree.chain(text), 1, 0))
    nodes = Nodes.of(tree, 1, length)
    expected = [last_of([*text, *tree.tokens[path_to(tree, node)].tolist()]) for node in range(len(tree))]
    assert state.before(nodes).tolist() == expected
    cut = data.draw(st.integers(0, len(tree)))
    again = [*state.before(nodes[:cut]).tolist(), *state.before(nodes[cut:]).tolist()]
    assert again == expected, "in two passes it finds something else"
    path = torch.tensor(path_to(tree, data.draw(st.integers(0, len(tree) - 1))))
    state.keep(1, length, AcceptedPath(path))
    text += tree.tokens[path].tolist()
    state.copy(1, 0, len(text))
    for row in range(2):
        assert state.before(Nodes.of(TokenTree.chain([7]), row, len(text))).tolist() == [last_of([*text, 7])]


def test_a_row_goes_on_from_a_point() -> None:
    state, text = TokenHistory(BEHIND, 2, 192), list(range(1, 129))
    state.before(Nodes.of(TokenTree.chain(text), 0, 0))
    state.resume(1, 128, state.point(0, 128))
    assert state.before(Nodes.of(TokenTree.chain([7]), 1, 128)).tolist() == [[126, 127, 128, 7]]
    assert state.tokens[1, :125].sum() == 0 and not state.taken(0, 0, 64)


def test_a_cache_has_one_for_each_layer_that_looks_tokens_up() -> None:
    plain = LayerShape(0, 4, 4, recurrent=RecurrentShape(8, 4))
    looks = LayerShape(0, 4, 4, recurrent=RecurrentShape(8, 4, further=(12,)), history=BEHIND)
    cache = Cache([plain, looks], 2, 128, torch.float32, fold=fold)
    assert cache.histories.keys() == {1} and cache.recurrent.keys() == {0, 1}
    assert cache.recurrent[1].convolved(-1).inputs.shape[2] == 12 and cache.histories[1] in cache.states
    assert cache.nbytes >= cache.histories[1].nbytes == 2 * 128 * 4 and looks.token_bytes(2) == 4
    tree = TokenTree.of([5, 6, 7, 8], [-1, 0, 0, 2])
    nodes = Nodes.of(tree, 0, 0)
    cache.begin_pass(nodes)
    cache.histories[1].before(nodes)
    cache.keep(0, torch.tensor([0, 2, 3]))
    assert cache.copy(0, 1, 3) == 3
    assert cache.histories[1].before(Nodes.of(TokenTree.chain([9]), 1, 3)).tolist() == [[5, 7, 8, 9]]
