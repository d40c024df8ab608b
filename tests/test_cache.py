"""Accepted paths end up in position order, whatever their slots were; a sliding layer gives a full layer's bits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import path_to, trees
from understudy import cache as caches
from understudy import layer_states
from understudy.cache import Cache
from understudy.errors import CheckpointError
from understudy.kernels.attention import AttentionSpec, attend, attend_anywhere
from understudy.kernels.draft_attention import LevelAttention
from understudy.layer_states import FullState, LayerShape, SlidingState
from understudy.tree import Nodes, TokenTree

TILE = 32
CAPACITY = 768
SHAPE = LayerShape(2, 8, 8)
WORK = ["read", "tree", "rewind", "copy", "fail"]


@settings(deadline=None)
@given(trees(), st.integers(0, 30), st.data())
def test_keep_puts_the_path_in_order(tree: TokenTree, length: int, data: st.DataObject) -> None:
    cache = Cache([LayerShape(3, 4, 5)] * 2, 2, 128, torch.float32)
    cache.lengths[1] = length
    before = torch.arange(length)[:, None, None].expand(-1, 3, 4).float()
    cache.layers[0].keys[1, :, :length] = before.transpose(0, 1)
    nodes = Nodes.of(tree, 1, length)
    keys = (1000 + torch.arange(len(tree)))[:, None, None].expand(-1, 3, 4).float()
    values = -(1000 + torch.arange(len(tree)))[:, None, None].expand(-1, 3, 5).float()
    for layer in cache.layers:
        layer.write(nodes, keys, values)
    path = torch.tensor(path_to(tree, data.draw(st.integers(0, len(tree) - 1))))
    cache.keep(1, path)
    end = length + len(path)
    assert cache.lengths == [0, end]
    for layer in cache.layers:
        assert torch.equal(layer.keys[1, :, length:end], keys[path].transpose(0, 1))
        assert torch.equal(layer.values[1, :, length:end], values[path].transpose(0, 1))
    assert torch.equal(cache.layers[0].keys[1, :, :length], before.transpose(0, 1))
    assert not cache.layers[0].keys[0].any(), "the other row was touched"
    assert cache.rewind(1, length) == length
    assert cache.lengths == [0, length]


@settings(deadline=None)
@given(trees(), st.integers(0, 30), st.data())
def test_latent_states_are_kept_once(tree: TokenTree, length: int, data: st.DataObject) -> None:
    shape = LayerShape(1, 12, 8, latent=True)
    cache, apart = (Cache([kind], 2, 128, torch.float32) for kind in (shape, replace(shape, latent=False)))
    assert shape.numbers == 12 and 5 * cache.nbytes == 3 * apart.nbytes
    nodes, path = Nodes.of(tree, 1, length), torch.tensor(path_to(tree, data.draw(st.integers(0, len(tree) - 1))))
    keys = torch.randn(len(tree), 1, 12)
    for one in (cache, apart):
        one.lengths[1] = length
        one.layers[0].write(nodes, keys, keys[..., :8])
        one.layers[0].write_one(0, 3, keys[0], keys[0, :, :8])
        one.keep(1, path)
        one.copy(1, 0, length + len(path))
    for name in ("keys", "values"):
        found, wanted = (getattr(one.layers[0], name)[:, :, length : length + len(path)] for one in (cache, apart))
        assert torch.equal(found, wanted) and torch.equal(found[1], found[0]) and found.any()
    taken = cache.taken(1, length, length + len(path))
    assert list(taken) == ["0 keys"]
    cache.rewind(0, 0)
    cache.put(0, 0, taken, 0)
    assert torch.equal(cache.layers[0].values[0, :, : len(path)], keys[path, :, :8].transpose(0, 1))


def test_a_layer_that_reads_anothers_keys_holds_nothing() -> None:
    own, sliding = LayerShape(2, 8, 8), LayerShape(1, 16, 16, window=8)
    shapes = [own, sliding, replace(own, reads=0), replace(sliding, reads=1)]
    cache, alone = Cache(shapes, 2, CAPACITY, torch.float32), Cache(shapes[:2], 2, CAPACITY, torch.float32)
    assert cache.nbytes == alone.nbytes
    assert cache.layer(2, 0) is cache.layer(0, 0) and cache.layer(3, 8) is cache.layer(1, 8)
    nodes = Nodes.of(TokenTree.of([1, 2, 3], [-1, 0, 0]), 0, 0)
    cache.begin_pass(nodes)
    keys = torch.randn(3, 2, 8)
    cache.layers[0].write(nodes, keys, keys)
    cache.keep(0, torch.tensor([0, 2]))
    cache.copy(0, 1, 2)
    assert torch.equal(cache.layer(2, 0).keys[1, :, :2].transpose(0, 1), keys[[0, 2]]), "what is shared moves once"


@given(st.data())
def test_scratch_moves_as_it_was_where_slots_overlap(data: st.DataObject) -> None:
    cache = Cache([LayerShape(3, 4, 5), SHAPE], 2, 64, torch.float32)
    for layer in cache.layers:
        for slab in (layer.keys, layer.values):
            slab.copy_(torch.arange(2 * 64)[:, None].view(2, 1, 64, 1).expand_as(slab))
    slots = torch.tensor(data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=20, unique=True)))
    to = data.draw(st.integers(0, 64 - len(slots))) + torch.arange(len(slots))
    cache.move(1, slots, to)
    for layer in cache.layers:
        assert torch.equal(layer.keys[1, :, to, 0], (64 + slots).expand(layer.keys.shape[1], -1).float())
        others = [slot for slot in range(64) if slot not in to.tolist()]
        assert torch.equal(layer.values[1, 0, others, 0], 64.0 + torch.tensor(others)) and layer.keys[0, 0, 63, 0] == 63
    sliding = Cache([LayerShape(2, 8, 8, 16)], 1, 1024, torch.float32)
    with pytest.raises(AssertionError, match="nodes of a SlidingState do not lie in any slots"):
        sliding.move(0, slots, to)


class Twins:
    """The same tokens in a cache whose layer slides and in one whose layer holds everything."""

    def __init__(self, window: int, dtype: torch.dtype):
        self.spec = AttentionSpec(0.3, window)
        self.full = Cache([SHAPE], 2, CAPACITY, dtype)
        self.sliding = Cache([LayerShape(2, 8, 8, window)], 2, CAPACITY, dtype)
        assert isinstance(self.sliding.layers[0], SlidingState) and not isinstance(self.full.layers[0], SlidingState)
        self.dtype = dtype

    @property
    def caches(self) -> tuple[Cache, Cache]:
        return self.full, self.sliding

    def numbers(self, count: int, heads: int = 2) -> Tensor:
        return torch.randn(count, heads, 8).to(self.dtype)

    def draft(self, tree: TokenTree, row: int) -> None:
        """Other numbers in the scratch, and in the slot after it, as a draft level leaves them; both layers attend alike."""
        length = self.full.lengths[row]
        nodes, query = Nodes.of(tree, row, length), self.numbers(len(tree), 4)
        keys, values = self.numbers(len(tree)), self.numbers(len(tree))
        outs = []
        for cache in self.caches:
            layer = cache.layer(0, self.spec.window)
            layer.write(nodes, keys, values)
            layer.write_one(row, min(length + caches.SCRATCH, CAPACITY - 1), keys[0], values[0])
            outs.append(LevelAttention(nodes)(query, layer.keys, layer.values, self.spec).float())
        assert torch.allclose(*outs, atol=2e-2 if self.dtype == torch.bfloat16 else 1e-5)

    def verify(self, tree: TokenTree, row: int) -> None:
        """A target pass, tile by tile; the same bits from both layers."""
        nodes = Nodes.of(tree, row, self.full.lengths[row])
        query, keys, values = self.numbers(len(tree), 4), self.numbers(len(tree)), self.numbers(len(tree))
        outs: list[list[Tensor]] = [[], []]
        for cache, out in zip(self.caches, outs, strict=True):
            cache.begin_pass(nodes)
            for start in range(0, len(tree), TILE):
                part = slice(start, start + TILE)
                layer = cache.layer(0, self.spec.window)
                layer.write(nodes[part], keys[part], values[part])
                for function in (attend, attend_anywhere):
                    out.append(function(query[part], layer.keys, layer.values, nodes[part], self.spec))
        assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True)) and not torch.cat(outs[0]).isnan().any()

    def keep(self, row: int, path: list[int]) -> None:
        for cache in self.caches:
            cache.keep(row, torch.tensor(path))

    def rewind(self, row: int, length: int) -> int:
        reached = self.sliding.rewind(row, length)
        assert self.full.rewind(row, reached) == reached
        return reached


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little room above the window that a sliding layer's places are used again all the time."""
    for module in (caches, layer_states):
        monkeypatch.setattr(module, "SCRATCH", 60)
    monkeypatch.setattr(layer_states, "GOING_BACK", 20)


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(WORK), st.integers(0, 1), st.integers(1, 150)), max_size=14),
    st.sampled_from([1, 5, 48, 200]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)  # fmt: skip
def test_a_sliding_layer_has_the_bits_of_a_full_one(
    work: list[tuple[str, int, int]], window: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    torch.manual_seed(len(work))
    twins = Twins(window, dtype)
    for what, row, size in [("read", 0, 90), *work, ("tree", 0, 1), ("tree", 1, 1)]:
        length = twins.full.lengths[row]
        if what == "rewind":
            back = data.draw(st.integers(0, length))
            reached = twins.rewind(row, back)
            assert reached in (0, back)
        elif what == "copy":
            lengths = {cache.copy(row, 1 - row, length) for cache in twins.caches}
            assert lengths == {length}, "what a row holds now can be copied"
        elif length + max(size, 60) + 62 > CAPACITY:
            continue
        elif what == "fail":
            twins.verify(TokenTree.chain([1] * size), row)
            assert twins.rewind(row, length) in (0, length), "what a pass that failed overwrote is known"
        elif what == "read":
            twins.verify(TokenTree.chain([1] * size), row)
            twins.keep(row, list(range(size)))
        else:
            tree = data.draw(trees(55))
            if length:
                twins.draft(tree, row)
            twins.verify(tree, row)
            twins.keep(row, path_to(tree, data.draw(st.integers(0, len(tree) - 1))))
        assert twins.full.lengths == twins.sliding.lengths


@pytest.mark.usefixtures("small")
def test_a_row_goes_back_a_little_or_to_its_start() -> None:
    twins = Twins(48, torch.float32)
    twins.verify(TokenTree.chain([1] * 500), 0)
    twins.keep(0, list(range(500)))
    assert twins.rewind(0, 480) == 480
    twins.verify(TokenTree.chain([1]), 0)
    assert twins.rewind(0, 300) == 0, "what the window of token 300 held was overwritten"
    twins.verify(TokenTree.chain([1] * 30), 0)
    twins.keep(0, list(range(30)))
    assert twins.rewind(0, 3) == 3, "nothing was overwritten yet"


@pytest.mark.usefixtures("small")
def test_what_a_draft_overwrote_is_remembered() -> None:
    twins = Twins(48, torch.float32)
    twins.verify(TokenTree.chain([1] * 100), 0)
    twins.keep(0, list(range(100)))
    twins.draft(TokenTree.chain([1] * 60), 0)
    assert twins.rewind(0, 90) == 90
    assert twins.rewind(0, 75) == 0


@pytest.mark.usefixtures("small")
def test_a_chain_of_which_little_is_accepted_is_read_again() -> None:
    twins = Twins(48, torch.float32)
    for size, kept in ((100, 100), (400, 2)):
        twins.verify(TokenTree.chain([1] * size), 0)
        twins.sliding.keep(0, torch.arange(kept))
    assert twins.sliding.lengths == [0, 0]


@pytest.mark.usefixtures("small")
def test_a_long_pass_that_fails_costs_what_it_overwrote() -> None:
    twins = Twins(48, torch.float32)
    twins.verify(TokenTree.chain([1] * 100), 0)
    twins.keep(0, list(range(100)))
    twins.verify(TokenTree.chain([1] * 20), 0)
    assert twins.rewind(0, 100) == 100
    twins.verify(TokenTree.chain([1] * 300), 0)
    assert twins.rewind(0, 100) == 0


def test_a_sliding_layer_holds_its_window_and_not_the_context() -> None:
    shapes = [LayerShape(2, 8, 8, 64), LayerShape(2, 8, 8)]
    cache = Cache(shapes, 1, 4416, torch.bfloat16)
    sliding, full = cache.layers
    assert full.nbytes == 4416 * 64 and sliding.nbytes == 640 * 64
    assert cache.nbytes == full.nbytes + sliding.nbytes
    assert type(Cache(shapes, 1, 576, torch.bfloat16).layers[0]) is FullState, "a short context is held whole"


def test_a_window_longer_than_foretold_is_refused() -> None:
    cache = Cache([LayerShape(2, 8, 8, 64)] * 2, 1, 4416, torch.bfloat16)
    assert cache.layer(1, 64) is cache.layers[1]
    for window, word in ((65, "65 tokens"), (0, "all tokens")):
        with pytest.raises(CheckpointError, match=f"Layer 1 looks back at {word}"):
            cache.layer(1, window)
