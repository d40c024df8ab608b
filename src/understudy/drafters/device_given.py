"""What the levels of a draft on a device are given: where each draft begins and how its tokens are chosen, and what levels and
nodes cost now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..plan.widths import padded
from ..sampling import offset
from ..sequence import TokenSequence
from .packed_tensors import PackedTensors
from .policy import DraftPolicy


@dataclass(frozen=True)
class DraftOrigin:
    """Where the draft of one sequence begins: at its root, which follows what the sequence's cache row holds."""

    sequence: TokenSequence
    token: int
    # The root's position, and the slot it lies in: node i of the tree lies `i` slots after it.
    length: int
    slot: int
    # Positions below this one lie in slots of the same number; those from it on, in slots that a node's tail tells.
    straight: int
    # Tokens that the sequence may still get after what the root follows: levels below it are fewer.
    remaining: int

    @classmethod
    def of(cls, sequence: TokenSequence, length: int) -> DraftOrigin:
        """A draft after all tokens of `sequence`, of which a row holds `length`, all but the last: that is the root."""
        return cls(sequence, sequence.tokens[-1], length, length, length + 1, sequence.remaining)


def give_origins(given: PackedTensors, origins: Sequence[DraftOrigin], policy: DraftPolicy) -> None:
    """Put down where drafts begin, each at its place, and how their sequences choose tokens."""
    given["stops"].fill_(-1)
    for place, origin in enumerate(origins):
        params = origin.sequence.params
        calibration = policy.calibration(origin.sequence)
        values = {
            "row": origin.sequence.row,
            "length": origin.length,
            "slot": origin.slot,
            "straight": origin.straight,
            "most": min(policy.limits.tree, policy.limits.capacity - 1 - origin.slot),
            "remaining": min(origin.remaining, policy.limits.levels + 1),
            "root": origin.token,
            "offset": offset(params.seed),
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "temperature": params.temperature,
            "inside": calibration.inside,
            "belief": calibration.weights,
        }
        for name, value in values.items():
            given[name][place] = torch.tensor(value, dtype=given[name].dtype)
        stops = sorted(origin.sequence.stop_ids)
        given["stops"][place, : len(stops)] = torch.tensor(stops, dtype=torch.int64)


def give_costs(given: PackedTensors, policy: DraftPolicy, widest: int, free: bool) -> None:
    """Put down the pace, and what each width of a level and each node of a pass costs now. `free`: does drafting cost nothing?"""
    pace, limits = policy.pace, policy.limits
    given["nodes"][0] = policy.most_nodes
    given["rate"][0] = pace.rate
    given["break even"][0] = pace.break_even
    given["free"][0] = float(free)
    costs = {width: pace.cost(width) for width in sorted({padded(i + 1) for i in range(widest)})}
    given["cost"].copy_(torch.tensor([costs[padded(i + 1)] for i in range(widest)]))
    # so many nodes cost the same each
    unit = limits.cost.unit
    shares = [limits.cost.share(first) for first in range(0, limits.nodes + unit, unit)]
    given["share"].copy_(torch.tensor([shares[-(-used // unit)] for used in range(limits.nodes + 1)]))
