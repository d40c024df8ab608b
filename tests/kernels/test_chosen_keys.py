"""What an index chooses: the tokens of the highest scores, of equal ones the earlier; no node's choice depends on another's."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import chosen_keys
from understudy.kernels.attention import ALL, AttentionSpec, Chosen, attend, attend_anywhere
from understudy.kernels.chosen_keys import IndexQuery, choose, choose_anywhere
from understudy.kernels.draft_attention import LevelAttention
from understudy.tree import Nodes, TokenTree

SLOTS = 192


def expected(asked: IndexQuery, keys: Tensor, nodes: Nodes) -> list[list[int]]:
    """By definition, in float64."""
    found = []
    for node, row in enumerate(nodes.rows.tolist()):
        slots = nodes.slots_in_order(node)
        products = asked.queries[node].double() @ keys[row, 0, slots].double().T * asked.scale
        scores = (asked.weights[node].double()[:, None] * products.relu()).sum(0)
        best = scores.sort(descending=True, stable=True).indices[: asked.most].sort().values
        found.append(slots[best].tolist())
    return found


def shown(chosen: Chosen, nodes: Nodes, head: int = 0) -> list[list[int]]:
    """The slots of each node, in the order of their positions; those of one head, where each chooses for itself."""
    if chosen.nodes is not None:
        found = chosen.nodes
        return [found.slots_in_order(node).tolist() for node in range(len(found))]
    lists = []
    for node in range(len(nodes)):
        slots = nodes.slots_in_order(node).tolist()
        words = [-1] * len(slots) if chosen.mask is None else chosen.mask[head, node].tolist()
        lists.append([slot for place, slot in enumerate(slots) if words[place // 64] >> place % 64 & 1])
    return lists


@st.composite
def trees(draw: Any) -> Nodes:
    """Trees above two texts."""
    several = []
    for row in range(2):
        count = draw(st.integers(1, 12))
        parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, count))]
        several.append(Nodes.of(TokenTree.of([1] * count, parents), row, draw(st.integers(0, SLOTS - count))))
    return Nodes.join(several)


def question(nodes: Nodes, size: int, most: int, seed: int, *, whole: bool) -> tuple[IndexQuery, Tensor]:
    """Random queries and an index; of small whole numbers, whose sums are exact and often equal, where `whole`."""
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=random).float() if whole else torch.randn(shape, generator=random)

    return IndexQuery(numbers(len(nodes), 3, size), numbers(len(nodes), 3), 0.25, most), numbers(2, 1, SLOTS, size)


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from([8, 16, 24]), st.integers(1, 80), st.integers(0, 99), st.booleans())
def test_the_best_are_chosen_and_of_equal_ones_the_earlier(nodes: Nodes, size: int, most: int, seed: int, halves: bool) -> None:
    asked, keys = question(nodes, size, most, seed, whole=True)
    keys = keys.to(torch.bfloat16) if halves else keys
    wanted, found = expected(asked, keys, nodes), choose(asked, keys, nodes)
    assert shown(found, nodes) == wanted and (found == ALL) == (nodes.last < most)
    anywhere = choose_anywhere(asked, keys, nodes)
    assert anywhere.nodes is not None and shown(anywhere, nodes) == wanted


@settings(max_examples=30, deadline=None)
@given(trees(), st.integers(1, 40), st.integers(0, 99))
def test_a_choice_is_the_nodes_own(nodes: Nodes, most: int, seed: int) -> None:
    asked, keys = question(nodes, 16, most, seed, whole=False)
    for way in (choose, choose_anywhere):
        together = shown(way(asked, keys, nodes), nodes)
        assert [len(slots) for slots in together] == [min(most, position + 1) for position in nodes.positions.tolist()]
        for node in range(len(nodes)):
            part = slice(node, node + 1)
            assert shown(way(asked[part], keys, nodes[part]), nodes[part]) == together[node : node + 1]


def blocks_expected(asked: IndexQuery, keys: Tensor, nodes: Nodes, head: int) -> list[list[int]]:
    """By definition, in float64: the slots of the blocks of one head."""
    found = []
    for node, row in enumerate(nodes.rows.tolist()):
        slots = nodes.slots_in_order(node)
        products = keys[row, 0, slots].double() @ asked.queries[node, head].double()
        scores = [float(part.max()) for part in products.split(asked.block)]
        latest = range(max(len(scores) - asked.latest, 0), len(scores))
        order = sorted(range(len(scores)), key=lambda own: (own not in latest, -scores[own], own))
        found.append([slot for own in sorted(order[: asked.most]) for slot in slots.split(asked.block)[own].tolist()])
    return found


@settings(max_examples=60, deadline=None)
@given(
    trees(), st.integers(1, 6), st.integers(1, 70), st.integers(0, 2), st.integers(0, 99), st.integers(0, 3), st.booleans()
)  # fmt: skip
def test_each_head_chooses_blocks_of_its_own(
    nodes: Nodes, most: int, block: int, latest: int, seed: int, threads: int, halves: bool
) -> None:
    asked, keys = question(nodes, 16, most, seed, whole=True)
    asked = IndexQuery(asked.queries, None, 1.0, max(most, latest), block, latest)
    keys = keys.to(torch.bfloat16) if halves else keys
    with ThreadPoolExecutor(3) as pool, pytest.MonkeyPatch.context() as changed:
        changed.setattr(chosen_keys, "WORTH_SHARING", 0)
        found = choose(asked, keys, nodes, pool=pool, threads=threads)
    for head in range(3):
        assert shown(found, nodes, head) == blocks_expected(asked, keys, nodes, head)
        for node in range(len(nodes)):
            part = slice(node, node + 1)
            assert shown(choose(asked[part], keys, nodes[part]), nodes[part], head) == shown(found, nodes, head)[node : node + 1]
    keys, values = (torch.randn(2, 3, SLOTS, 16) for _ in range(2))
    query = torch.randn(len(nodes), 6, 16)
    exact, drafted = attend(query, keys, values, nodes, AttentionSpec(0.3, chosen=found)), LevelAttention(nodes)
    torch.testing.assert_close(drafted(query, keys, values, AttentionSpec(0.3, chosen=found)), exact, atol=1e-5, rtol=1e-4)
    for head in range(3):
        own = Chosen(mask=None if found.mask is None else found.mask[head : head + 1])
        kept, group = slice(head, head + 1), slice(2 * head, 2 * head + 2)
        alone = attend(query[:, group], keys[:, kept], values[:, kept], nodes, AttentionSpec(0.3, chosen=own))
        assert torch.equal(alone, exact[:, group])


def test_shared_out_over_threads_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen_keys, "WORTH_SHARING", 0)
    nodes = Nodes.of(TokenTree.chain([1] * 90), 1, 80)
    asked, keys = question(nodes, 32, 64, 5, whole=False)
    alone = choose(asked, keys, nodes)
    with ThreadPoolExecutor(3) as pool:
        shared = choose(asked, keys, nodes, pool=pool, threads=3)
    assert alone.mask is not None and shared.mask is not None and torch.equal(alone.mask, shared.mask)
    assert shown(shared, nodes)[0] != shown(shared, nodes)[-1]


def test_scores_that_are_no_numbers_are_chosen_last() -> None:
    nodes = Nodes.of(TokenTree.chain([1] * 30), 0, 0)
    asked, keys = question(nodes, 8, 10, 1, whole=False)
    keys[0, 0, [3, 20]] = torch.nan
    for way in (choose, choose_anywhere):
        lists = shown(way(asked, keys, nodes), nodes)
        assert all(len(slots) == min(place + 1, 10) for place, slots in enumerate(lists))
        assert 3 not in lists[25] and 20 not in lists[25]


def test_all_is_looked_at_while_there_is_no_more_than_that() -> None:
    nodes = Nodes.of(TokenTree.chain([1] * 10), 0, 0)
    asked, keys = question(nodes, 8, 10, 1, whole=False)
    assert choose(asked, keys, nodes) == ALL
    assert choose_anywhere(IndexQuery(asked.queries, asked.weights, 1.0, SLOTS), keys, nodes) == ALL
    further = Nodes.of(TokenTree.chain([1] * 10), 0, 1)
    again = choose(asked, keys, further)
    assert again != ALL and [len(slots) for slots in shown(again, further)] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


@settings(max_examples=30, deadline=None)
@given(trees(), st.integers(1, 150), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_attention_looks_at_what_was_chosen(nodes: Nodes, most: int, seed: int, dtype: torch.dtype) -> None:
    """Exact and drafted, and a node's bits are its own."""
    asked, index = question(nodes, 16, most, seed, whole=False)
    random = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn((2, 2, SLOTS, 16), generator=random).to(dtype) for _ in range(2))
    query = torch.randn((len(nodes), 4, 16), generator=random).to(dtype)
    slots = shown(choose(asked, index, nodes), nodes)
    wanted = []
    for node, row in enumerate(nodes.rows.tolist()):
        seen = Nodes.of(TokenTree.chain([1]), row, len(slots[node]) - 1)
        texts = [torch.zeros_like(slab[:, :, :64].repeat(1, 1, 3, 1)) for slab in (keys, values)]
        for text, slab in zip(texts, (keys, values), strict=True):
            text[row, :, : len(slots[node])] = slab[row][:, slots[node]]
        wanted.append(attend_anywhere(query[node : node + 1], *texts, seen, AttentionSpec(0.3)))
    spec = AttentionSpec(0.3, chosen=choose(asked, index, nodes))
    found = attend(query, keys, values, nodes, spec)
    for other in (found, LevelAttention(nodes)(query, keys, values, spec)):
        near = 0.03 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(other.float(), torch.cat(wanted).float(), atol=near, rtol=0.02)
    for node in range(len(nodes)):
        part = slice(node, node + 1)
        alone = AttentionSpec(0.3, chosen=choose(asked[part], index, nodes[part]))
        assert torch.equal(attend(query[part], keys, values, nodes[part], alone), found[part])
