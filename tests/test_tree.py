"""Trees and the flat nodes made of them, against a plain walk over parents."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.tree import AcceptedPath, Nodes, TokenTree


@st.composite
def trees(draw: st.DrawFn, most: int = 40) -> TokenTree:
    parents = [-1] + [draw(st.integers(max(0, i - draw(st.integers(0, 6))), i)) for i in range(draw(st.integers(0, most)))]
    return TokenTree.of([draw(st.integers(0, 9)) for _ in parents], parents)


def path_to(tree: TokenTree, node: int) -> list[int]:
    path = [node]
    while int(tree.parents[path[0]]) >= 0:
        path.insert(0, int(tree.parents[path[0]]))
    return path


@given(trees())
def test_depths_and_ancestors(tree: TokenTree) -> None:
    for node in range(len(tree)):
        path = path_to(tree, node)
        assert int(tree.depths[node]) == len(path) - 1
        assert tree.ancestors[node].nonzero().flatten().tolist() == sorted(path)


@given(trees(), st.integers(0, 200), st.integers(0, 3), st.data())
def test_a_node_sees_the_row_and_its_own_path_in_the_order_of_positions(
    tree: TokenTree, length: int, row: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(tree) - 1))
    nodes = Nodes.of(tree, row, length, first)
    assert len(nodes) == len(tree) - first and set(nodes.rows.tolist()) == {row}
    for i in range(len(nodes)):
        path = path_to(tree, first + i)
        assert int(nodes.positions[i]) == length + len(path) - 1
        assert int(nodes.slots[i]) == length + first + i
        assert nodes.slots_in_order(i).tolist() == [*range(length), *(length + node for node in path)]


@given(st.lists(trees(12), min_size=1, max_size=4))
def test_joined_rows_keep_what_each_node_sees(several: list[TokenTree]) -> None:
    parts = [Nodes.of(tree, row, 10 * row) for row, tree in enumerate(several)]
    joined, at = Nodes.join(parts), 0
    for part in parts:
        for i in range(len(part)):
            assert joined.slots_in_order(at + i).tolist() == part.slots_in_order(i).tolist()
        at += len(part)
    assert at == len(joined)


def test_a_chain_needs_no_tail() -> None:
    assert Nodes.of(TokenTree.chain(range(100)), 0, 7).tail.shape == (100, 0)


def test_a_parent_after_its_child_is_a_bug() -> None:
    try:
        TokenTree.of([1, 2, 3], [-1, 2, 0])
    except AssertionError as error:
        assert "parent" in str(error)
    else:
        raise AssertionError("accepted")


@given(trees(), st.integers(0, 20))
def test_torch_dtypes_are_those_of_indices(tree: TokenTree, length: int) -> None:
    nodes = Nodes.of(tree, 0, length)
    assert {t.dtype for t in (nodes.tokens, nodes.rows, nodes.slots, nodes.positions, nodes.prefix, nodes.tail)} == {torch.int64}


def test_what_an_accepted_path_moves_is_worked_out_once() -> None:
    here = torch.device("cpu")
    path = AcceptedPath(torch.tensor([0, 1, 4, 9]))
    moves = path.moves(100, here)
    assert moves is not None and moves.tolist() == [[102, 103], [104, 109]] and len(path) == 4
    assert path.moves(100, here) is moves and path.moves(90, here) is not moves
    assert AcceptedPath(torch.arange(5)).moves(100, here) is None


@given(trees(), st.integers(0, 200), st.integers(1, 90))
def test_within_a_chunk_a_node_sees_what_comes_after_its_beginning(tree: TokenTree, length: int, chunk: int) -> None:
    nodes = Nodes.of(tree, 0, length)
    for within in (nodes.within(chunk), nodes.within(chunk, chunk)):
        assert torch.equal(within.slots, nodes.slots)
        for i in range(len(nodes)):
            position = int(nodes.positions[i])
            seen = within.slots_in_order(i)
            assert torch.equal(seen, nodes.slots_in_order(i)[position // chunk * chunk :]) and len(seen) == position % chunk + 1
