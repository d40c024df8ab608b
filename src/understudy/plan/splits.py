"""By blocks of outputs or in stages of layers: what a pass takes either way, and which of the two is taken.

By blocks, all devices work on each Linear at the same time, and all links bring weights all the time; but each Linear waits for
its inputs to go to the others and its outputs to come back. In stages, one device after the other works, a few states go on at
the end of each stage, and a link brings weights only as long as its ring has room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError
from .lanes import joined
from .placement import BLOCKS, STAGES, Plan
from .sizes import format_size

# The name of each way, as notes have it.
NAMES = {BLOCKS: "by blocks of outputs", STAGES: "in stages of layers"}


@dataclass(frozen=True)
class Hop:
    """From one device to another, measured between those that are slowest."""

    # Until a few bytes are there, and work with them has begun.
    seconds: float
    # Of many bytes.
    bytes_per_second: float
    # Bytes per second of weights that a device reads; 0: not known.
    memory: float = 0.0

    def of(self, nbytes: float) -> float:
        """Seconds until so many bytes are there."""
        return self.seconds + nbytes / self.bytes_per_second


@dataclass(frozen=True)
class PassShape:
    """A pass, as far as devices have to do with each other."""

    nodes: int
    # Bytes of the state that a layer hands on, for one node.
    line: int
    # Linears whose blocks may be dealt out.
    linears: int
    # Whether draft levels are recorded on the first device, as those of stages cannot be.
    recorded: bool = False


def pass_seconds(plans: Sequence[Plan], shape: PassShape, hop: Hop) -> float:
    """What a pass should take by the plans of all devices, each of which reads weights as fast as `hop` says."""
    sent = hop.of(shape.nodes * shape.line)
    memory = hop.memory or float("inf")
    links = [_brought(plan, plan.streamed_bytes) for plan in plans]
    if plans[0].split == BLOCKS:
        total = max(sum(plan.residual_bytes for plan in plans), 1)
        exact = plans[0].exact_bytes / memory
        works = [exact * plan.residual_bytes / total for plan in plans]
        return max(*links, *works) + shape.linears * 2 * sent
    works = [plan.exact_bytes / memory for plan in plans]
    alone = sum(max(_waited(plan), work) for plan, work in zip(plans, works, strict=True))
    return max(alone, *links) + len(plans) * sent


def _brought(plan: Plan, nbytes: int) -> float:
    """Seconds in which the link of a device brings so many bytes; 0 where nobody knows how fast it is."""
    return nbytes / plan.link_bytes_per_second if plan.link_bytes_per_second else 0.0


def _waited(plan: Plan) -> float:
    """Seconds that a stage waits for weights that its ring did not hold when its turn came."""
    return _brought(plan, max(plan.streamed_bytes - plan.ring_bytes, 0))


def chosen(
    split: str, ways: Mapping[str, Callable[[], Sequence[Plan]]], shape: PassShape, hop: Hop
) -> tuple[Sequence[Plan], str]:
    """The plans of one of the `ways` to split a model, and why it is that: `split`, or, where that is none of them, the faster of
    those that fit. Raises UsageError where it does not fit, or none does."""
    plans: dict[str, Sequence[Plan]] = {}
    refused: dict[str, UsageError] = {}
    for name, plan in ways.items():
        try:
            plans[name] = plan()
        except UsageError as error:
            refused[name] = error
    seconds = {name: pass_seconds(made, shape, hop) for name, made in plans.items()}
    recorded = split not in ways and shape.recorded and BLOCKS in plans
    best = split if split in ways else BLOCKS if recorded else min(seconds, key=lambda name: seconds[name], default="")
    if best not in plans:
        raise refused[best or BLOCKS]
    others = [f"{NAMES[name]} {_told(taken)}" for name, taken in seconds.items() if name != best]
    others += [f"{NAMES[name]} it does not fit ({str(error).rstrip('.')})" for name, error in refused.items()]
    between = f"{hop.seconds * 1e6:.0f} us and {format_size(int(hop.bytes_per_second))}/s from device to device"
    graphs = ", since drafts are recorded graphs, which stay on one device" if recorded else ""
    asked = ", as --split says" if split in ways else graphs
    nodes = f"{shape.nodes} node{'s' * (shape.nodes > 1)}"
    takes = ", ".join([f"a pass of {nodes} should take {_told(seconds[best])}", *others])
    return plans[best], f"{NAMES[best]}{asked}: {takes} ({between})"


def _told(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def joined_stages(plans: Sequence[Plan]) -> Plan:
    """The plan of all devices together, each of which has a stage: that of the first, with what streams in all, and as fast as a
    pass gets it when one stage waits after the other."""
    layers = ", ".join(f"{plan.device} {plan.stage[0]} to {plan.stage[1] - 1}" for plan in plans)
    each = "each with its copy and its keys and values"
    groups = plans[0].groups
    grouped = [f"texts go through the stages in up to {groups} groups side by side, where that is faster"] if groups > 1 else []
    whole = joined(plans, [f"decoder layers over {len(plans)} devices in stages ({layers}), {each}", *grouped])
    streamed = whole.streamed_bytes
    seconds = max(sum(map(_waited, plans)), *(_brought(plan, plan.streamed_bytes) for plan in plans))
    link = streamed / seconds if seconds else plans[0].link_bytes_per_second
    return replace(
        whole,
        exact_bytes=sum(plan.exact_bytes for plan in plans),
        draft_level_bytes=sum(plan.draft_level_bytes for plan in plans),
        link_bytes_per_second=link,
        speeds=replace(whole.speeds, link_bytes_per_second=link if whole.speeds.link_bytes_per_second else 0.0),
    )
