"""Rows of a rectangle end in one column, and moving them changes no key: whatever is written before and after, in any row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.cache import Cache
from understudy.kernels.attention import AttentionSpec, attend
from understudy.layer_states import LayerShape
from understudy.rectangle import OwnLengths, PaddedCache, layout_of
from understudy.tree import Nodes, TokenTree

ROWS, CAPACITY = 3, 128
# Keys and values of unlike sizes, a layer that reads another's, sizes that are no multiple of 16 bytes, and latent states.
SHAPES = [LayerShape(2, 8, 16), LayerShape(2, 8, 16, reads=0), LayerShape(1, 3, 5), LayerShape(1, 9, 5, latent=True)]


def caches(dtype: torch.dtype) -> tuple[Cache, PaddedCache]:
    return Cache(SHAPES, ROWS, CAPACITY, dtype), PaddedCache(SHAPES, ROWS, CAPACITY, dtype, scratch=8)


def append(cache: Cache, row: int, count: int, seed: int) -> None:
    """Accept `count` tokens with random keys and values in `row`."""
    nodes = Nodes.of(TokenTree.chain([0] * count), row, cache.lengths[row])
    cache.begin_pass(nodes)
    generator = torch.Generator().manual_seed(seed)
    for index, shape in enumerate(SHAPES):
        keys = torch.randn(count, shape.kv_heads, shape.key_size, generator=generator)
        values = torch.randn(count, shape.kv_heads, shape.value_size, generator=generator)
        values = keys[..., : shape.value_size] if shape.latent else values
        cache.write(index, cache.placed(nodes), None, keys, values)
    cache.keep(row, torch.arange(count))


def same(plain: Cache, padded: PaddedCache, row: int) -> bool:
    """Do both hold the same keys and values for `row`?"""
    length = plain.lengths[row]
    place = padded.padded[0].first(row)
    return length == padded.lengths[row] and all(
        torch.equal(getattr(one, name)[row, :, :length], getattr(other, name)[place, :, :length])
        for one, other in zip(plain.layers, padded.layers, strict=True)
        for name in ("keys", "values")
    )


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "align", "rewind", "copy", "unpad"]), st.integers(0, 2), st.integers(1, 9)), max_size=25
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@settings(max_examples=60)
@given(steps=STEPS)
def test_rows_that_are_moved_hold_what_rows_hold_that_never_move(dtype: torch.dtype, steps: list[tuple[str, int, int]]) -> None:
    plain, padded = caches(dtype)
    for number, (what, row, count) in enumerate(steps):
        if what == "append" and padded.end(row) + count + 8 < CAPACITY:
            append(plain, row, count, number)
            append(padded, row, count, number)
        elif what == "align":
            rows = [one for one in range(ROWS) if one != row or count > 3]
            padded.align(rows)
            assert len({padded.end(one) for one in rows}) == 1
        elif what == "rewind" and plain.lengths[row] >= count:
            assert plain.rewind(row, count - 1) == padded.rewind(row, count - 1)
        elif what == "copy" and plain.lengths[row] >= count:
            assert plain.copy(row, (row + 1) % 3, count) == padded.copy(row, (row + 1) % 3, count)
        elif what == "unpad":
            padded.unpad(row)
            assert padded.pads[row] == 0
        assert all(same(plain, padded, one) for one in range(ROWS))
        assert all(pads >= 0 for pads in padded.pads) and all(padded.end(one) < CAPACITY for one in range(ROWS))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=3, max_size=3), nodes=st.integers(1, 8))
def test_attention_gives_the_bits_of_rows_of_their_own_lengths(lengths: list[int], nodes: int) -> None:
    """Whatever lies in the slots of padding, and wherever a row begins."""
    plain, padded = caches(torch.bfloat16)
    for storage in padded.padded[0].storages:
        storage.fill_(1e3)
    for row, length in enumerate(lengths):
        append(plain, row, length, row)
        append(padded, row, length, row)
    padded.align(range(ROWS))
    trees = [TokenTree.of([0] * nodes, [-1, *([0] * (nodes - 1))]) for _ in range(ROWS)]
    flat = Nodes.join([Nodes.of(tree, row, plain.lengths[row]) for row, tree in enumerate(trees)])
    query = torch.randn(len(flat), 4, 8)
    found = []
    for cache in (plain, padded):
        keys = torch.randn(len(flat), 2, 8, generator=torch.Generator().manual_seed(9))
        values = torch.randn(len(flat), 2, 16, generator=torch.Generator().manual_seed(8))
        there = cache.placed(flat)
        cache.write(0, there, None, keys, values)
        found.append(attend(query, cache.layers[0].keys, cache.layers[0].values, there, AttentionSpec(0.3)))
    assert torch.equal(*found) and found[0].isfinite().all()


def test_rows_move_only_where_they_must_and_what_moves_is_counted() -> None:
    _, padded = caches(torch.float32)
    for row, count in enumerate((4, 9, 9)):
        append(padded, row, count, row)
    padded.align([1, 2])
    assert padded.pads == [0, 0, 0] and padded.alignment.still == padded.alignment.passes == 1
    padded.align([0, 1, 2])
    assert padded.pads == [5, 0, 0] and padded.alignment.still == 1 and padded.alignment.passes == 2
    assert padded.alignment.moved == 4 and padded.alignment.bytes == 4 * 4 * (2 * (8 + 16) + 3 + 5 + 9)
    assert padded.padding([2, 5, 3]) == [3, 0, 2]
    assert padded.alignment.columns == 3 * (9 + 5) and padded.alignment.padding == 5 + 3 + 2


def test_rows_that_end_too_late_for_another_tree_are_moved_back() -> None:
    _, padded = caches(torch.float32)
    append(padded, 0, CAPACITY - 10, 0)
    append(padded, 1, 2, 1)
    padded.align([0, 1])
    padded.rewind(0, 0)
    append(padded, 1, 2, 2)
    assert padded.end(1) == CAPACITY - 8
    padded.align([1])
    assert padded.end(1) == 4 and padded.pads[1] == 0


def test_an_ordinary_cache_moves_and_pads_nothing() -> None:
    plain, padded = caches(torch.float32)
    layout = layout_of(plain)
    append(plain, 1, 5, 0)
    layout.align([0, 1])
    layout.unpad(1)
    assert isinstance(layout, OwnLengths) and layout.end(1) == 5 and layout.padding([3, 1]) == [0, 0]
    assert layout_of(padded) is padded


def test_a_layer_that_slides_cannot_lie_in_a_rectangle() -> None:
    with pytest.raises(AssertionError, match="whole context"):
        PaddedCache([LayerShape(1, 4, 4, window=16)], 2, 2048, torch.float32, scratch=8)
