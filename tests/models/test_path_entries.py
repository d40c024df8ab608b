"""What the nodes of a pass find of entries is worked out once for all layers that find the same."""

from unittest.mock import MagicMock

import torch

from understudy.cache import Cache
from understudy.compressed import INDEX, OWN
from understudy.compression import CompressedShape
from understudy.devices.processor import Processor
from understudy.kernels.attention import ALL, AttentionSpec
from understudy.kernels.chosen_keys import IndexQuery
from understudy.layer_states import LayerShape
from understudy.models.path_entries import PathEntries
from understudy.tree import Nodes, TokenTree

LONG, SHORT = CompressedShape(6), CompressedShape(4, overlaps=True, index_size=8)
SPEC = AttentionSpec(0.5, 5)


def layer(compressed: CompressedShape | None) -> LayerShape:
    return LayerShape(1, 2, 2, 5, latent=True, compressed=compressed)


def entries_of(nodes: Nodes) -> PathEntries:
    cache = Cache([layer(each) for each in (LONG, None, SHORT, LONG)], 1, 128, torch.float32)
    return PathEntries(cache, lambda _: (Processor(threads=1), nodes))


def test_layers_that_look_at_all_share_what_they_see() -> None:
    entries = entries_of(Nodes.of(TokenTree.chain([1] * 30), 0, 0))
    first, plain, last = (entries.looked_at(index, SPEC) for index in (0, 1, 3))
    assert plain is SPEC and first.window == 0 and first.chosen.nodes is last.chosen.nodes is not None
    # each sees its five entries of six tokens and its window, at most
    assert first.chosen.nodes.positions.tolist() == [min(n, 4) + (n + 1) // 6 for n in range(30)]


def test_an_index_chooses_entries_of_the_highest_scores() -> None:
    nodes = Nodes.of(TokenTree.chain([1] * 30), 0, 0)
    entries = entries_of(nodes)
    state = entries.state(2)
    assert state is not None and state.index is not None
    for of_index in (False, True):
        # an entry is the number of its block
        size, parts = (8, state.parts[INDEX]) if of_index else (2, state.parts[OWN])
        make = MagicMock(side_effect=lambda parts, number, size=size: torch.full((size,), float(number + 1)))
        entries.compress(2, torch.zeros(30, parts.shape[3]), make, of_index=of_index)
        assert make.call_count == 7
    asked = IndexQuery(torch.ones(30, 1, 8), torch.ones(30, 1), 1.0, 2)
    entries.choose(2, asked)
    seen = entries.looked_at(2, SPEC).chosen.nodes
    assert seen is not None
    found = [state.keys[0, 0, places[places >= 0][:-5], 0].tolist() for places in seen.tail[[18, 19, 29]]]
    assert found == [[3.0, 4.0], [4.0, 5.0], [6.0, 7.0]]
    entries.choose(2, IndexQuery(asked.queries, asked.weights, 1.0, 7))
    assert entries.looked_at(2, SPEC).chosen.nodes is entries.looked_at(2, SPEC).chosen.nodes, "all are looked at"
    assert entries.looked_at(2, SPEC).chosen is not ALL
