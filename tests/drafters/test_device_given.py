"""What a draft on a device is given says where it begins and what its levels may have."""

import pytest
import torch

from tests.drafters.fixed import costing
from understudy.drafters.device_given import DraftOrigin, give_costs, give_origins
from understudy.drafters.device_state import SearchSizes
from understudy.drafters.packed_tensors import PackedTensors
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence

SAMPLED = SamplingParams(temperature=0.5, seed=7, top_k=9, min_p=0.1)


def given(policy: DraftPolicy, rows: int = 2) -> PackedTensors:
    sizes = SearchSizes(rows, policy.limits.capacity, 4, policy.limits.nodes, 8)
    return PackedTensors.of(*sizes.given(), lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))


def test_a_draft_begins_after_the_text_or_where_it_is_told_to() -> None:
    policy = DraftPolicy(Limits(capacity=100, nodes=16, tree=60, levels=20))
    usual = TokenSequence(1, [5, 6, 7], stop_ids=frozenset({3, 2}), limit=50, prompt_length=2)
    ahead = TokenSequence(0, [5, 6, 7], SAMPLED, limit=9, prompt_length=2)
    found = given(policy)
    give_origins(found, [DraftOrigin.of(usual, 30), DraftOrigin(ahead, 11, 34, 47, 30, 4)], policy)
    assert found["row"].tolist() == [1, 0] and found["root"].tolist() == [7, 11]
    assert found["length"].tolist() == [30, 34] and found["slot"].tolist() == [30, 47] and found["straight"].tolist() == [31, 30]
    assert found["most"].tolist() == [60, 52], "as many slots as there are behind the root, but for the spare one"
    assert found["remaining"].tolist() == [21, 4] and found["stops"].tolist() == [[2, 3, -1, -1], [-1] * 4]
    assert found["temperature"].tolist() == [0.0, 0.5] and found["top_k"].tolist() == [0, 9]


@pytest.mark.parametrize("free", [True, False])
def test_costs_are_those_of_padded_widths(free: bool) -> None:
    policy = DraftPolicy(Limits(capacity=100, nodes=16), pace=costing([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 0.25))
    found = given(policy)
    give_costs(found, policy, 8, free)
    assert found["cost"].tolist() == [1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0]
    assert found["free"].item() == free and found["rate"].item() == 0.25 and found["nodes"].item() == 16
