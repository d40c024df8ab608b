"""Several devices by blocks: the parts of each Linear are dealt out, so links add up, and so does the room for what stays.

The first device runs all else: the draft, attention, norms, the KV cache. Each further one is a *lane*: it multiplies by its blocks
of 64 outputs and gives the results to the first. An output is one sum over its columns wherever it is made, so no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..tiers.memory import ALIGNMENT
from .demand import Footprint, PlanRequest
from .memory import MARGIN, budget_for, make_plan, usual_ring, with_passes
from .placement import BLOCKS, Passes, Plan
from .residents import LinearSize, LinkSpeeds
from .sizes import format_size, whole_mib

# A Linear's copy has at most so many tensors, each of which begins at a page of a lane's memory.
TENSORS = 2
# Parts are dealt out whole: a device may get so many more than its share.
SLACK = 4
# Halvings after which a share is known to the byte.
HALVINGS = 80


@dataclass(frozen=True)
class LaneRequest:
    """A further device, as planning sees it. Sizes are bytes, speeds bytes per second."""

    name: str
    budget_bytes: int
    # In use there before any of the model is.
    runtime_bytes: int
    # From where its weights stream; 0: not known.
    link: float


@dataclass(frozen=True)
class DeviceRoom:
    """What decides how much of the exact weights a device gets."""

    # Bytes for parts that stay, and for what decodes parts.
    free: float
    # Bytes of the copy that it needs for each byte of its parts, beside those it holds anyway.
    beside: float
    # Bytes per second that stream there.
    link: float
    # Whether parts stay at all.
    keeps: bool = True

    @property
    def stays(self) -> float:
        """The most bytes of parts that stay."""
        return self.within(0.0)

    def within(self, seconds: float) -> float:
        """Bytes of parts that it can have where a pass may stream for so many seconds."""
        streamed = seconds * self.link
        most = max(self.free + streamed, 0.0) / (1 + self.beside) if self.keeps else streamed
        return min(most, max(self.free, 0.0) / self.beside) if self.beside else most


def shares(total: int, rooms: Sequence[DeviceRoom]) -> list[float]:
    """How many of `total` bytes each device gets: all streams end at once, or, where everything can stay, none has more than it
    must, since what is multiplied takes time too."""
    if sum(room.stays for room in rooms) >= total:
        level = _least(lambda most: sum(min(room.stays, most) for room in rooms), total, float(total))
        return [min(room.stays, level) for room in rooms]
    if not all(room.link for room in rooms):
        rooms = [replace(room, link=1.0) for room in rooms]
    # The first holds the whole copy, so that it can have everything.
    longest = (total - min(rooms[0].free, 0.0)) / rooms[0].link
    seconds = _least(lambda most: sum(room.within(most) for room in rooms), total, longest)
    return [room.within(seconds) for room in rooms]


def _least(reached: Callable[[float], float], wanted: float, high: float) -> float:
    """The least argument, at most `high`, at which the growing function `reached` gives `wanted`."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < wanted else (low, middle)
    return high


def dealt(part_bytes: Sequence[int], parts: Sequence[int], wanted: Sequence[float]) -> list[int]:
    """The device of each part, by number: each gets about its share `wanted` of the bytes, of every Linear and in all. A device's
    parts of one Linear follow one another. `parts`: how many each Linear has."""
    total = max(sum(wanted), 1e-9)
    owed = [0.0] * len(wanted)
    owners: list[int] = []
    for count in parts:
        sizes = part_bytes[len(owners) : len(owners) + count]
        owed = [debt + share / total * sum(sizes) for debt, share in zip(owed, wanted, strict=True)]
        order = iter(sorted(range(len(owed)), key=lambda device: -owed[device]))
        device = next(order)
        for size in sizes:
            # The next one's turn comes when less than half of a part is owed to this one; the last takes what is left.
            while owed[device] < size / 2 and (following := next(order, None)) is not None:
                device = following
            owed[device] -= size
            owners.append(device)
    return owners


def plan_lanes(footprint: Footprint, request: PlanRequest, lanes: Sequence[LaneRequest]) -> tuple[Plan, ...]:
    """The plan of the first device, and one for each of `lanes`: what streams is what streams there, and so is the link.

    Raises UsageError where one of them has too little memory."""
    assert request.resident != "whole", "a Linear that is kept whole cannot be dealt out"
    first = replace(request, resident="none" if request.resident == "none" else "residual")
    passes = make_plan(footprint, first).passes
    asked = (first, *(asked_of(first, lane) for lane in lanes))
    owners = dealt(footprint.part_bytes, _parts(footprint), shares(sum(footprint.part_bytes), _rooms(footprint, asked, passes)))
    plans = []
    for place, one in enumerate(asked):
        mine = [number for number, owner in enumerate(owners) if owner == place]
        portion = _portion(footprint, mine, first=place == 0)
        plans.append(planned_for(portion, one, passes, mine, lanes[place - 1] if place else None))
    return tuple(plans)


def joined(plans: Sequence[Plan], notes: Sequence[str] = ()) -> Plan:
    """The plan of all devices together: that of the first, with what streams in all, and how fast where links add up. `notes`: what
    is to be said of it; none: how blocks are dealt out."""
    first, *lanes = plans
    streamed = sum(plan.streamed_bytes for plan in plans)
    known = [plan for plan in plans if plan.streamed_bytes and plan.link_bytes_per_second]
    seconds = max((plan.streamed_bytes / plan.link_bytes_per_second for plan in known), default=0.0)
    link = streamed / seconds if seconds else first.link_bytes_per_second
    whole = replace(
        first,
        streamed_bytes=streamed,
        streamed_parts=sum(plan.streamed_parts for plan in plans),
        residual_bytes=sum(plan.residual_bytes for plan in plans),
        link_bytes_per_second=link,
        speeds=replace(first.speeds, link_bytes_per_second=link if first.speeds.link_bytes_per_second else 0.0),
        lanes=tuple(lanes),
    )
    own = notes or (_why(plans), _slow_drafts(plans))
    return whole.noted(*own, *(f"{lane.device}: {note}" for lane in lanes for note in lane.notes))


def _why(plans: Sequence[Plan]) -> str:
    """How the parts were dealt out, and by what."""
    total = max(sum(plan.residual_bytes for plan in plans), 1)
    parts = ", ".join(f"{plan.device} {plan.residual_bytes / total:.0%}" for plan in plans)
    split = f"exact weights over {len(plans)} devices by blocks of outputs ({parts})"
    if not any(plan.streamed_bytes for plan in plans):
        return f"{split}: all of them stay, as evenly as there is room"
    links = " and ".join(f"{plan.link_bytes_per_second / 1e9:.1f}" for plan in plans)
    return f"{split}: so that links of {links} GB/s end together"


def _slow_drafts(plans: Sequence[Plan]) -> str:
    """What is to be said where a draft level, which the first device runs alone, takes longer than a pass; empty: it does not."""
    level, widest = plans[0].draft_level_bytes, max(plan.residual_bytes for plan in plans)
    if not plans[0].speeds.draft_levels or level < widest or any(plan.streamed_bytes for plan in plans):
        return ""
    reads = f"a draft level reads {format_size(level)} on {plans[0].device}, a pass at most {format_size(widest)} on each device"
    return f"{reads}: a trained head, or --method none, should be faster than the copy"


def _parts(footprint: Footprint) -> list[int]:
    return [linear.parts for linear in footprint.linears]


def asked_of(first: PlanRequest, lane: LaneRequest) -> PlanRequest:
    """What a lane must hold: nothing of drafts, caches and heads."""
    return replace(
        first,
        budget_bytes=lane.budget_bytes,
        runtime_bytes=lane.runtime_bytes,
        speeds=LinkSpeeds(link_bytes_per_second=lane.link),
        second_model_bytes=0,
        head_bytes=0,
        head_unread_bytes=0,
        prefix_bytes=0,
        aligning_bytes=0,
        grammar_bytes=0,
        widest_level=0,
    )


def _rooms(footprint: Footprint, asked: Sequence[PlanRequest], passes: Passes) -> list[DeviceRoom]:
    """What each device has for exact weights, the first in front. Where not everything can stay, rings are set aside."""
    total = sum(footprint.part_bytes)
    beside = sum(linear.decoding_bytes for linear in footprint.linears) / max(total, 1)
    rooms = []
    for place, request in enumerate(asked):
        bare = _portion(footprint, (), first=place == 0)
        free = (request.budget_bytes - budget_for(bare, request, passes)) * (1 - MARGIN)
        free -= SLACK * max(footprint.part_bytes, default=0) * (1 + (beside if place else 0.0))
        rooms.append(DeviceRoom(free, beside if place else 0.0, request.speeds.link_bytes_per_second, request.resident != "none"))
    if sum(room.stays for room in rooms) >= total:
        return rooms
    return [replace(room, free=room.free - usual_ring(footprint, room.free)) for room in rooms]


def _portion(footprint: Footprint, mine: Collection[int], first: bool) -> Footprint:
    """What a device takes that has the parts `mine`: the `first` with all else, a lane with the copies that decode them."""
    numbers = frozenset(mine)
    linears: list[LinearSize] = []
    copies = start = 0
    for linear in footprint.linears:
        blocks = [count for number, count in enumerate(linear.part_blocks, start) if number in numbers]
        start += linear.parts
        if blocks:
            copies += -(-linear.decoding_bytes * sum(blocks) // linear.blocks) + TENSORS * ALIGNMENT
        linears.append(replace(linear, parts=len(blocks), substitute_bytes=linear.substitute_bytes if first else 0))
    part_bytes = tuple(footprint.part_bytes[number] for number in sorted(numbers))
    if first:
        return replace(footprint, part_bytes=part_bytes, linears=tuple(linears))
    return Footprint(
        part_bytes=part_bytes,
        substitute_bytes=copies,
        shared_bytes=0,
        kv_bytes_per_token=0,
        tile_bytes=footprint.tile_bytes,
        tile_logits_bytes=footprint.tile_logits_bytes,
        choosing_bytes=0,
        embedding_bytes=0,
        decoding_bytes=footprint.decoding_bytes,
        together_bytes=footprint.together_bytes,
        linears=tuple(linears),
    )


def planned_for(
    footprint: Footprint, request: PlanRequest, passes: Passes, mine: Sequence[int], lane: LaneRequest | None
) -> Plan:
    """The plan of a device that has the parts `mine`, of which `footprint` tells. Raises UsageError where they do not fit."""
    least = budget_for(footprint, request, passes)
    if least > request.budget_bytes:
        where = f"{lane.name}: " if lane is not None else ""
        small = f"{where}--memory {format_size(request.budget_bytes)} is too small"
        raise UsageError(f"{small}: the smallest that works there is {whole_mib(least)}.")
    plan = with_passes(footprint, request, passes)
    return replace(
        plan,
        split=BLOCKS,
        linears=None if lane is None else frozenset(),
        parts=frozenset(mine),
        residents=frozenset(mine[place] for place in plan.residents),
        device=lane.name if lane is not None else plan.device,
        # What it says of prompts is the first device's to say.
        notes=() if lane is not None else plan.notes,
    )
