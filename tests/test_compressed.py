"""Compressed keys in a cache: each node finds the entries of its own path, whatever tree, chunk, copy or return came before."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import path_to, trees
from understudy import cache as caches
from understudy import layer_states
from understudy.cache import Cache
from understudy.compressed import CompressedState
from understudy.compression import CompressedShape
from understudy.layer_states import LayerShape
from understudy.models.layer_sizes import layer_size
from understudy.models.stock.shape import ModelShape
from understudy.tree import Nodes, TokenTree

CAPACITY, WINDOW, TILE = 640, 5, 32
KINDS = (CompressedShape(7), CompressedShape(4, overlaps=True, index_size=3), CompressedShape(1), CompressedShape(64))
WORK = ["read", "tree", "draft", "rewind", "copy", "disk", "fail"]
# [tokens, 2], as the keys or the entries of a node are
Pairs = list[tuple[float, ...]]


def shape_of(compressed: CompressedShape) -> LayerShape:
    return LayerShape(1, 2, 2, WINDOW, latent=True, compressed=compressed)


def entry(shape: CompressedShape, size: int, parts: Tensor, number: int) -> Tensor:
    """Depends on each token that an entry is made of, on their order and on the block's number."""
    assert len(parts) == shape.looks_back
    own = parts[:, 0].double()
    if shape.overlaps and number == 0:
        own[: shape.rate] = 0
    total = (own * torch.arange(1, len(own) + 1)).sum() % 8191
    return torch.tensor([float(total), float(number), *[0.0] * (size - 2)])


class Texts:
    """Texts in the rows of a cache, and what each of its nodes must find."""

    def __init__(self, compressed: CompressedShape) -> None:
        self.compressed, self.random = compressed, Random(7)
        self.cache = Cache([shape_of(compressed)], 2, CAPACITY, torch.float32)
        self.rows: list[list[int]] = [[], []]

    @property
    def state(self) -> CompressedState:
        state = self.cache.layers[0]
        assert isinstance(state, CompressedState) and state.slides
        return state

    def of(self, parents: Tensor) -> TokenTree:
        """A tree of these `parents`, of other tokens than all before."""
        return TokenTree(torch.tensor([self.random.randint(1, 1000) for _ in parents]), parents)

    def run(self, row: int, tree: TokenTree, tile: int) -> None:
        """A pass, or levels of a draft: some nodes at a time, each of which must find its own path."""
        nodes = Nodes.of(tree, row, len(self.rows[row]))
        for start in range(0, len(tree), tile):
            part = nodes[start : start + tile]
            keys = part.tokens[:, None, None].float().expand(-1, 1, 2)
            self.state.write(part, keys, keys)
            for kind, slab in self.state.parts.items():
                make = partial(entry, self.compressed, self.state.entries[kind].shape[3])
                self.state.compress(part, kind, part.tokens[:, None].float().expand(-1, slab.shape[3]), make)
            for place in {0, len(part) - 1, self.random.randrange(len(part))}:
                node = start + place
                way = tree.tokens[: node + 1] if tree.is_chain else tree.tokens[tree.ancestors[node]]
                self.check(part[place : place + 1], self.rows[row] + way.tolist())
        # several nodes at once see what each sees alone
        ended = self.state.ended(part)
        several = self.state.seen(part, ended, WINDOW, None)
        alone = self.state.seen(part[-1:], self.state.ended(part[-1:]), WINDOW, None)
        assert several.tail[-1, : alone.tail.shape[1]].tolist() == alone.tail[0].tolist()

    def wanted(self, path: list[int]) -> Pairs:
        """The entries of all whole blocks of a text."""
        shape, found = self.compressed, []
        for end in range(shape.rate, len(path) + 1, shape.rate):
            parts = torch.tensor([float(path[max(place, 0)]) for place in range(end - shape.looks_back, end)])
            found.append(tuple(entry(shape, 2, parts[:, None], end // shape.rate - 1).tolist()))
        return found

    def check(self, node: Nodes, path: list[int]) -> None:
        state, ended, wanted = self.state, self.state.ended(node), self.wanted(path)
        window = [(float(token), float(token)) for token in path[-WINDOW:]]

        def found(seen: Nodes, slab: Tensor) -> Pairs:
            assert int(seen.positions) + 1 == int(seen.prefix) + int((seen.tail >= 0).sum())
            assert int(seen.slots) == slab.shape[2] - 1
            return [tuple(each[:2]) for each in slab[int(seen.rows), 0, seen.slots_in_order(0)].tolist()]

        assert found(state.seen(node, ended, WINDOW, None), state.keys) == wanted + window
        if state.index is not None:
            assert found(ended, state.index) == wanted
            # bits beyond the last block are of any content
            words = torch.full((1, 1, len(wanted) // 64 + 1), 0b101 << 60 | 0b1101, dtype=torch.int64)
            some = [each for number, each in enumerate(wanted) if (0b101 << 60 | 0b1101) >> number % 64 & 1]
            assert found(state.seen(node, ended, WINDOW, words), state.keys) == some + window

    def keep(self, row: int, tree: TokenTree, path: list[int]) -> None:
        self.cache.keep(row, torch.tensor(path))
        text = self.rows[row] + tree.tokens[torch.tensor(path)].tolist()
        assert self.cache.lengths[row] in (0, len(text))
        self.rows[row] = text[: self.cache.lengths[row]]

    def to_disk_and_back(self, row: int) -> None:
        """The other row goes on from what files hold of this one."""
        length = len(self.rows[row]) // 64 * 64
        if not length or self.cache.reach(row, length) < length:
            return
        taken = [self.cache.taken(row, start, start + 64) for start in range(0, length, 64)]
        assert max(sum(each.nbytes for each in block.values()) for block in taken) <= self.cache.block_bytes(64)
        point = self.cache.point(row, length)
        self.cache.rewind(1 - row, 0)
        for number, block in enumerate(taken):
            self.cache.put(1 - row, 64 * number, block, 0)
        self.cache.resume(1 - row, length, point)
        self.rows[1 - row] = self.rows[row][:length]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little room above the window that places are used again all the time."""
    for module in (caches, layer_states):
        monkeypatch.setattr(module, "SCRATCH", 60)
    monkeypatch.setattr(layer_states, "GOING_BACK", 20)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("compressed", KINDS)
@pytest.mark.parametrize("length", [1, 2, 63, 90])
def test_branches_that_end_the_same_block_have_each_their_entry(compressed: CompressedShape, length: int) -> None:
    """Two branches of ten tokens with a fork in each; the second is accepted, copied to the other row, and both go on."""
    texts = Texts(compressed)
    prompt, tree = texts.of(torch.arange(-1, length - 1)), texts.of(torch.tensor([-1, 0, 0, *range(1, 17), 15, 16, 19, 20, 21, 22]))
    texts.run(0, prompt, TILE)
    texts.keep(0, prompt, list(range(length)))
    texts.run(0, texts.of(tree.parents), 3)
    texts.run(0, tree, TILE)
    texts.keep(0, tree, path_to(tree, 24))
    assert len(texts.rows[0]) == length + len(path_to(tree, 24)) > length + 10
    texts.cache.copy(0, 1, len(texts.rows[0]))
    texts.rows[1] = list(texts.rows[0])
    for row in (0, 1):
        texts.run(row, texts.of(torch.arange(-1, 39)), TILE)


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(WORK), st.integers(0, 1), st.integers(1, 150)), max_size=12),
    st.sampled_from(KINDS),
    st.data(),
)
def test_each_node_finds_the_entries_of_its_own_path(
    work: list[tuple[str, int, int]], compressed: CompressedShape, data: st.DataObject
) -> None:
    texts = Texts(compressed)
    cache, rows = texts.cache, texts.rows
    for what, row, size in [("read", 0, 90), *work, ("tree", 0, 1), ("tree", 1, 1)]:
        length = len(rows[row])
        if what == "rewind":
            rows[row] = rows[row][: cache.rewind(row, data.draw(st.integers(0, length)))]
        elif what == "copy":
            assert cache.copy(row, 1 - row, length) == length
            rows[1 - row] = list(rows[row])
        elif what == "disk":
            texts.to_disk_and_back(row)
        elif length + max(size, 60) + 62 <= CAPACITY:
            branches = what in ("tree", "draft")
            tree = texts.of(data.draw(trees(55)).parents if branches else torch.arange(-1, size - 1))
            if what != "draft":
                cache.begin_pass(Nodes.of(tree, row, length))
            texts.run(row, tree, TILE)
            if what == "fail":
                rows[row] = rows[row][: cache.rewind(row, length)]
            elif what != "draft":
                path = path_to(tree, data.draw(st.integers(0, len(tree) - 1))) if what == "tree" else list(range(size))
                texts.keep(row, tree, path)


def test_a_short_context_is_held_whole() -> None:
    """Nothing is ever overwritten then, so a row goes back to any of its tokens."""
    cache = Cache([shape_of(KINDS[1])], 1, 128, torch.float32)
    (state,) = cache.layers
    assert isinstance(state, CompressedState) and not state.slides and state.held == 128
    nodes = Nodes.of(TokenTree.chain([1] * 100), 0, 0)
    cache.begin_pass(nodes)
    cache.keep(0, torch.arange(100))
    assert cache.rewind(0, 3) == 3


@pytest.mark.parametrize("compressed", KINDS)
def test_a_plan_counts_what_is_held(compressed: CompressedShape) -> None:
    layer = shape_of(compressed)
    shape = ModelShape((layer,), 1, 1, 8, 1, 8, False, False, False, "", 0, None, "")
    for capacity in (1024, 4096):
        size = layer_size(shape, 0, torch.bfloat16)
        held = Cache([layer], 1, capacity, torch.bfloat16).nbytes
        assert 0 <= size.token_bytes * capacity + size.state_bytes - held <= capacity, "rounded up for each token"
    state = Cache([layer], 3, 1024, torch.bfloat16).layers[0]
    assert 3 * state.growth(0, 1024) <= state.nbytes and state.growth(1024, 1024) == 0
    assert state.growth(0, 100) + state.growth(100, 1000) == state.growth(0, 1000)
