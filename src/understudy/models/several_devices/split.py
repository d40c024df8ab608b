"""A model on several devices: what is made of them, by blocks of outputs or in stages of layers, and how all of it is given
back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...devices import Device
from ...plan.placement import STAGES, Plan
from ..stream.supply import Supply
from ..stream.weights import Weights
from .lanes import JoinedSupply, Lane, refuse_other_bits
from .stages import StagedSupply, Stages

if TYPE_CHECKING:
    from ..model import Model

AnySupply = Supply | JoinedSupply | StagedSupply


def staged(blocks: nn.ModuleList, devices: Sequence[Device], plan: Plan) -> Stages | None:
    """Which device runs which of a model's decoder `blocks`, where the plan splits it so: they then lie there, and forwards go from
    one to the next. None: the first runs all of them."""
    if plan.split != STAGES:
        return None
    stages = Stages(devices, [plan.stage, *(lane.stage for lane in plan.lanes)])
    stages.install(blocks)
    # A graph cannot go from device to device.
    devices[0].graphs = None
    return stages


def supply_of_all(first: Supply, weights: Weights, lanes: Sequence[Lane], plan: Plan) -> AnySupply:
    """The supply of all devices, of which the first one's is `first`. UsageError where they multiply with different bits."""
    if not lanes:
        return first
    refuse_other_bits(weights.device, lanes)
    entries = weights.entries
    if plan.split != STAGES:
        return JoinedSupply(first, weights.portions, lanes, [entry.shape[0] for entry in entries])
    owners = {index: lane for lane, own in zip(lanes, plan.lanes, strict=True) for index in own.linears or ()}
    return StagedSupply(first, [owners.get(index) for index in range(len(entries))])


def drafts_of_all(weights: Weights, lanes: Sequence[Lane], dtype: torch.dtype) -> dict[int, Callable[[Tensor], Tensor]]:
    """What multiplies by the copy of each Linear, on the device that has it."""
    found = weights.drafts(dtype)
    for lane in lanes:
        if lane.stage is not None:
            found |= lane.run(partial(lane.stage.drafts, dtype)).result()
    return found


def give_back(model: Model, error: BaseException) -> None:
    """Give back the memory of all devices of `model`: one of them is lost, as `error` says, and nothing is computed any more."""
    failed: BaseException | None = error
    while failed is not None:
        # What was computed with until then.
        traceback.clear_frames(failed.__traceback__)
        failed = failed.__context__
    if model.ring is not None:
        model.ring.close()
    model.ring = None
    model.close_lanes()
    first = model.supply if isinstance(model.supply, Supply) else model.supply.first
    first.drop()
    model.weights.drop()
    for drop in model.drops:
        drop()
    model.draft.linears = {}
    model.module.to("meta")
    # They hold products of whole blocks.
    for place in range(len(model.blocks)):
        model.blocks[place] = nn.Identity()
    model.cache.drop()
    for device in model.devices:
        device.forget()
