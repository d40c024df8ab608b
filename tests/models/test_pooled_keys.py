"""An index of blocks: keys are of their node's path, and the best blocks with what follows them are looked at, in any company."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_chosen_keys import SLOTS, shown, trees
from tests.test_tree import path_to
from understudy.kernels.attention import ALL
from understudy.layer_states import FullState, LayerShape
from understudy.models.pooled_keys import PooledQuery
from understudy.tree import AcceptedPath, Nodes, TokenTree

SIZE, HEADS = 6, 3


def pool(tokens: Tensor, starts: Tensor) -> Tensor:
    """Keys of blocks: what is kept in the order of places, with what depends on where a block begins. Whole numbers stay so."""
    order = torch.arange(1, tokens.shape[1] + 1)[None, :, None]
    return (tokens * order).sum(1)[:, :SIZE] + starts[:, None] % 3


def state_with(kept: Tensor, length: list[int], asked: PooledQuery) -> FullState:
    """A layer that has read the first `length` tokens of each row, of which the index keeps `kept` [rows, slots, numbers]."""
    state = FullState(LayerShape(1, 4, 4, index_size=kept.shape[2]), len(kept), SLOTS, torch.float32)
    for row, count in enumerate(length):
        if count:
            nodes = Nodes.of(TokenTree.chain([1] * count), row, 0)
            PooledQuery(torch.zeros(count, HEADS, SIZE), None, 1.0, asked.most, asked.block, pool).choose(
                state, kept[row, :count], nodes
            )
    return state


def expected(asked: PooledQuery, kept: Tensor, nodes: Nodes) -> list[list[int]]:
    """By definition: the slots that each node looks at."""
    found = []
    for node, row in enumerate(nodes.rows.tolist()):
        slots = nodes.slots_in_order(node)
        whole = len(slots) // asked.block
        parts = slots[: whole * asked.block].view(whole, asked.block)
        scores = []
        for number, part in enumerate(parts):
            key = pool(kept[row, part][None], torch.tensor([number * asked.block]))[0]
            products = (asked.queries[node] @ key * asked.scale).relu()
            scores.append(float(products.sum() if asked.weights is None else products @ asked.weights[node]))
        best = sorted(sorted(range(whole), key=lambda own: (-scores[own], own))[: asked.most])
        found.append([*(slot for own in best for slot in parts[own].tolist()), *slots[whole * asked.block :].tolist()])
    return found


@settings(max_examples=80, deadline=None)
@given(trees(), st.integers(1, 6), st.integers(1, 9), st.integers(0, 99), st.booleans(), st.booleans())
def test_the_best_blocks_and_the_tail_are_looked_at(
    nodes: Nodes, most: int, block: int, seed: int, weighted: bool, wider: bool
) -> None:
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=random).float()

    kept = numbers(2, SLOTS, 2 * SIZE if wider else SIZE)
    asked = PooledQuery(
        numbers(len(nodes), HEADS, SIZE), numbers(len(nodes), HEADS) if weighted else None, 0.5, most, block, pool
    )
    # the first node of each row is its tree's root
    lengths = [int(nodes.slots[nodes.rows == row].min()) for row in range(2)]
    state = state_with(kept, lengths, asked)
    own = kept[nodes.rows, nodes.slots]
    wanted, found = expected(asked, kept, nodes), asked.choose(state, own, nodes)
    assert shown(found, nodes) == wanted and (found == ALL) == ((nodes.last + 1) // block <= most)
    for node in range(len(nodes)):
        part = slice(node, node + 1)
        assert shown(asked[part].choose(state, own[part], nodes[part]), nodes[part]) == wanted[part]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 40), st.integers(2, 5))
def test_what_an_accepted_path_leaves_is_what_reading_it_leaves(data: st.DataObject, length: int, block: int) -> None:
    """Of a tree that is accepted in part: each key has moved with the node that ended its block."""
    count = data.draw(st.integers(1, 12))
    tree = TokenTree.of([1] * count, [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, count))])
    kept = torch.randn(2, SLOTS, SIZE)
    asked = PooledQuery(torch.zeros(count, HEADS, SIZE), None, 1.0, 2, block, pool)
    drafted = state_with(kept, [length, 0], asked)
    nodes = Nodes.of(tree, 0, length)
    asked.choose(drafted, kept[0, nodes.slots], nodes)
    path = torch.tensor(path_to(tree, data.draw(st.integers(0, count - 1))))
    drafted.keep(0, length, AcceptedPath(path))
    end = length + len(path)
    read = kept.clone()
    read[0, length:end] = kept[0, length + path]
    assert drafted.index is not None
    plain = state_with(read, [end, 0], asked).index
    assert plain is not None and torch.equal(drafted.index[0, 0, :end], plain[0, 0, :end])
