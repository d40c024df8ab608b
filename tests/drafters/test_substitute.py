"""The 4-bit copy drafts in the target's own cache: its trees begin where the accepted text ends."""

from types import SimpleNamespace

import torch

from understudy.cache import Cache
from understudy.devices.processor import Processor
from understudy.drafters import DEFAULT_METHOD, spec_of
from understudy.drafters.search import SearchDrafter
from understudy.drafters.substitute import SubstituteSpec
from understudy.drafters.tree_search import TreeSearch
from understudy.layer_states import LayerShape
from understudy.models.cost import PassCost
from understudy.sequence import TokenSequence
from understudy.tree import Nodes


def test_it_is_the_default_and_holds_the_substitute_alone() -> None:
    spec = spec_of(DEFAULT_METHOD)
    assert isinstance(spec, SubstituteSpec)
    assert spec.holds_substitute and spec.second_model is None and spec.taps == () and not spec.forced


def test_it_searches_with_the_targets_draft_view_in_the_targets_cache() -> None:
    cache = Cache([LayerShape(1, 1, 1)], 2, 200, torch.float32)
    ran: list[Nodes] = []

    def draft(nodes: Nodes) -> torch.Tensor:
        ran.append(nodes)
        return torch.eye(8)[(nodes.tokens + 1) % 8] * 9

    target = SimpleNamespace(
        cache=cache, device=Processor(), draft=draft, cost=PassCost(), tree_nodes=40, filling=lambda: False
    )
    drafter = spec_of("substitute:width=1,depth=4").open(target)  # type: ignore[arg-type]
    assert isinstance(drafter, SearchDrafter) and isinstance(drafter.search, TreeSearch)
    assert drafter.policy.limits.nodes == 40 and drafter.policy.limits.capacity == 200
    assert sorted(drafter.policy.pace.levels) == [1, 2, 4, 8][: len(drafter.policy.pace.levels)], "it has measured its levels"
    ran.clear()
    cache.lengths[1] = 3
    (tree,) = drafter.draft([TokenSequence(1, [0, 1, 2, 5], limit=30, prompt_length=4)])
    assert tree.tokens.tolist() == [5, 6, 7, 0, 1] and tree.is_chain
    assert [nodes.slots.tolist() for nodes in ran] == [[3], [4], [5], [6]]
    assert cache.lengths == [0, 3], "the target moves the accepted nodes, not the draft"
