"""What lies below a child of a search's root, as a search that began there holds it."""

import pytest
import torch
from torch import Tensor

from tests.drafters.fixed import CAPACITY, Fixed, Unaided, costing, device, draft
from understudy.drafters.device_state import COLUMNS, KEY, SCORES
from understudy.drafters.device_subtree import below, child_of_root, subtree
from understudy.drafters.growing_tree import MOST_NODES
from understudy.drafters.packed_tensors import PackedTensors
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.kernels.search_columns import CHANCE, CHILDREN, DEPTH, FOUND, PARENT, SPINE, THROUGH, TOKEN
from understudy.sequence import TokenSequence


def room(nbytes: int) -> Tensor:
    return torch.full((nbytes,), 0x7F, dtype=torch.uint8)


@torch.inference_mode()
def searched(seed: int) -> PackedTensors:
    """The state of a search for one sequence, with a branching tree."""
    policy = DraftPolicy(Limits(CAPACITY, 64), pace=costing([1e-3] * 7, 25.0))
    drafter = device(Fixed(seed, 0.5), policy, Unaided())
    draft(drafter, [TokenSequence(0, [4], limit=40, prompt_length=1)], [9])
    return drafter.search.result()


@pytest.mark.parametrize("seed", range(4))
def test_a_subtree_is_a_search_of_its_own(seed: int) -> None:
    state = searched(seed)
    count = int(state["count"][0])
    node, chances = state["node"][0, :count], state["node chances"][0, :count]
    tops = [i for i in range(count) if node[i, PARENT] == 0]
    assert len(tops) > 1 and count > 12
    seen = 0
    for top in tops:
        assert child_of_root(state, int(node[top, TOKEN])) == top
        kept = below(state, top)
        seen += len(kept)
        grown = subtree(state, kept, 100, state.alike(room))
        own, figures = grown.state["node"][0, : len(kept)], grown.state["node chances"][0, : len(kept)]
        assert int(grown.state["count"][0]) == len(kept) and grown.state["count"][1:].sum() == 0
        same = [TOKEN, FOUND, *range(CHILDREN, own.shape[1])]
        assert torch.equal(own[:, same], node[kept][:, same])
        assert own[0, PARENT] == -1 and own[0, SPINE] == 1 and figures[0, CHANCE] == 1
        assert torch.equal(figures[:, SCORES:COLUMNS], chances[kept][:, SCORES:COLUMNS])
        for i in range(1, len(kept)):
            parent = int(own[i, PARENT])
            assert kept[parent] == int(node[kept[i], PARENT]) and own[i, DEPTH] == own[parent, DEPTH] + 1
            first = int(own[parent, CHILDREN]) == int(own[i, TOKEN])
            assert bool(own[i, SPINE]) == (bool(own[parent, SPINE]) and first)
            path = [100 + i]
            while own[parent, PARENT] >= 0:
                path.append(100 + parent)
                parent = int(own[parent, PARENT])
            assert grown.tails[i, : int(own[i, DEPTH])].tolist() == path[::-1]
        was = chances[kept][:, THROUGH:SCORES]
        ours = figures[:, THROUGH:SCORES]
        assert torch.equal(was < 0, ours < 0) and torch.allclose(ours[was >= 0] * chances[top, CHANCE], was[was >= 0])
        assert KEY > THROUGH and grown.tails.shape == (len(kept), MOST_NODES)
    assert seen == count - 1, "each node but the root lies below one child of it"
    assert child_of_root(state, 9999) is None
