"""Passes of the target and levels of the draft by themselves: by the device's own clock, by the host's, and what the link did."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
NODES = (1, 64)
WIDTHS = (1, 8, 16)
PASSES = 5
LINK_PASSES = 3
# Tokens in the cache before a pass, where there are so many.
PROMPT = 256
# Times of a level after the first, which may compile or record.
LEVELS = 5
# Shorter pauses between copies are the driver's own.
PAUSE = 20e-6


def often(llm: Any, times: int) -> int:
    """`times` on a GPU; once where it is simulated, whose times mean nothing."""
    return times if llm.model.device.where == "cuda" else 1


def first_of_each(logits: Tensor, first: int) -> Tensor:
    """Settles nodes without asking the device for anything."""
    return logits[:, 0]


@dataclass(frozen=True)
class Pass:
    """A pass of so many nodes, a chain below the text in row 0, that can be run any number of times."""

    llm: Any
    nodes: Any

    @classmethod
    def of(cls, llm: Any, count: int) -> "Pass":
        from understudy.tree import Nodes, TokenTree

        cache = llm.model.cache
        return cls(llm, Nodes.of(TokenTree.chain(range(7, 7 + count)), 0, cache.lengths[0]))

    def run(self) -> None:
        """Give the pass to the device; what that takes of the host, and no wait for its end."""
        model = self.llm.model
        with torch.inference_mode():
            model.target(self.nodes, torch.arange(len(self.nodes)), first_of_each)

    def timed(self) -> Row:
        device = self.llm.model.device
        device.finish()
        begun, start, worked = device.mark(), time.perf_counter(), time.thread_time()
        self.run()
        host, worked = time.perf_counter() - start, time.thread_time() - worked
        ended = device.mark()
        device.wait_for(ended)
        whole = time.perf_counter() - start
        on_device = device.seconds_between(begun, ended)
        return {"ms": 1e3 * whole, "device_ms": 1e3 * on_device, "host_ms": 1e3 * host, "host_cpu_ms": 1e3 * worked}


def below_the_prompt(llm: Any) -> None:
    """Let row 0 hold no more than the beginning of the latest text."""
    llm.engine.kept.clear()
    llm.model.cache.rewind(0, min(PROMPT, llm.model.cache.lengths[0]))


def most_nodes(llm: Any) -> int:
    """The most nodes that a pass below the text in row 0 may have."""
    cache = llm.model.cache
    return min(NODES[-1], cache.scratch, llm.plan.pass_nodes, cache.capacity - cache.lengths[0])


def passes(llm: Any) -> Row:
    """Passes of one node and of many in turn, each the median of a few."""
    found: dict[int, list[Row]] = {}
    below_the_prompt(llm)
    runs = {count: Pass.of(llm, count) for count in (NODES[0], most_nodes(llm))}
    for run in runs.values():
        run.timed()
    for _ in range(often(llm, PASSES)):
        for count, run in runs.items():
            found.setdefault(count, []).append(run.timed())
    medians = {count: {what: statistics.median(row[what] for row in rows) for what in rows[0]} for count, rows in found.items()}
    one, many = medians[NODES[0]], medians[most_nodes(llm)]
    by_device = many["device_ms"] / one["device_ms"] if one["device_ms"] else None
    ratio = many["ms"] / one["ms"]
    return {"nodes": most_nodes(llm), "one": one, "many": many, "ratio": ratio, "device_ratio": by_device}


def links(llm: Any) -> dict[int, Row]:
    """How the link fared in passes of one node and of many."""
    below_the_prompt(llm)
    return {count: link(llm, Pass.of(llm, count)) for count in (NODES[0], most_nodes(llm))}


@contextmanager
def watched(tier: Any) -> Iterator[list[Any]]:
    """Every copy that is asked of `tier` inside."""
    copies: list[Any] = []
    fetch = tier.fetch

    def watching(index: int, into: Tensor) -> Any:
        copies.append(fetch(index, into))
        return copies[-1]

    tier.fetch = watching
    try:
        yield copies
    finally:
        del tier.fetch


def link(llm: Any, run: Pass) -> Row:
    """How long the link stood still between copies while some passes ran one after another, by the copies' own events."""
    ring, device = llm.model.ring, llm.model.device
    if ring is None:
        return {}
    device.finish()
    with watched(ring.tier) as copies:
        begun = device.mark()
        for _ in range(often(llm, LINK_PASSES)):
            run.run()
            device.finish()
        ended = device.mark()
        device.wait_for(ended)
        # what was asked for last arrives now
        llm.settle()
    for copy in copies[-1:]:
        device.wait_for(copy.arrived)
    between = device.seconds_between
    inside = [copy for copy in copies if between(begun, copy.begun) >= 0 and between(copy.arrived, ended) >= 0]
    if len(inside) < 2:
        return {"copies": len(inside)}
    gaps = [max(0.0, between(first.arrived, then.begun)) for first, then in pairwise(inside)]
    busy = sum(between(copy.begun, copy.arrived) for copy in inside)
    span = between(inside[0].begun, inside[-1].arrived)
    nbytes = sum(copy.nbytes for copy in inside)
    return {
        "copies": len(inside), "bytes": nbytes, "span_ms": 1e3 * span, "busy_ms": 1e3 * busy, "idle_ms": 1e3 * sum(gaps),
        "idle_share": sum(gaps) / span if span else 0.0, "pauses": sum(gap > PAUSE for gap in gaps),
        "longest_ms": 1e3 * max(gaps), "bytes_per_second": nbytes / busy if busy else 0.0,
    }  # fmt: skip


def levels(llm: Any) -> Row:
    """What a draft level of one row takes at each width, against reading its weights once at the speed of a copy there."""
    search = fresh_search(llm)
    bound = llm.plan.draft_level_bytes / bandwidth(llm.model.device)
    taken = {}
    for width in WIDTHS:
        if width <= search.widest:
            times = [search.measure(width) for _ in range(1 + often(llm, LEVELS))][1:]
            taken[width] = {"ms": 1e3 * statistics.median(times), "ratio": statistics.median(times) / bound}
    return {"bound_ms": 1e3 * bound, "widths": taken, "graphs": len(getattr(search, "graphs", ()))}


def fresh_search(llm: Any) -> Any:
    """The drafter's search, with nothing in row 0 of the cache: so it measures levels."""
    llm.engine.kept.clear()
    llm.model.cache.rewind(0, 0)
    return llm.engine.drafter.search


def bandwidth(device: Any, most: int = 256 << 20) -> float:
    """Bytes per second that the device's memory reads and writes in a copy; the largest that there is room for beside a model."""
    size = 1 << 20 if device.where == "cpu" else most
    try:
        source, into = (torch.zeros(size, dtype=torch.uint8, device=device.where) for _ in range(2))
    except torch.OutOfMemoryError:
        if size <= 16 << 20:
            raise
        return bandwidth(device, size // 2)
    best = float("inf")
    for _ in range(8):
        device.finish()
        began = time.perf_counter()
        into.copy_(source)
        device.finish()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best
