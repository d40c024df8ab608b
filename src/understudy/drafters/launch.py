"""Drafting on a device: levels of `device_search` are launched one after another, without waiting for the latest one.

Level n + 1 is launched as soon as the results of level n - 1 arrive, so its width lags one level behind. The lag is always the
same, so a tree depends on the search alone and not on timing. Near the end of a draft the host waits for the last level in place
of launching one that may be useless: that pause is a small part of what a useless level takes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..devices.accelerator import Accelerator
from ..devices.graphs import CaptureError, Graph
from ..errors import UsageError
from ..plan.widths import GRAPHS, padded, widest
from ..sampling import offset
from ..sequence import TokenSequence
from ..tree import Nodes
from .device_search import (
    BUCKET,
    CHANCE,
    CHILDREN,
    DEPTH,
    FIGURES,
    FOUND,
    PARENT,
    SPINE,
    THROUGH,
    TOKEN,
    LevelShape,
    TensorSearch,
    places,
)
from .growing_tree import MOST_NODES, Candidate, GrowingTree
from .pace import Pace
from .packed_tensors import PackedTensors
from .tree_search import NO_SHAPE, WIDEST, Limits, Shape, TreeSearch

LIKELY = 2  # levels that are likely to pay after the next one: fewer, and the last one's figures are awaited
STOPS = 8  # stop tokens of a row there is room for at first


@dataclass
class Launched:
    """A level under way: what of it is coming, when, and whether its time tells what such a level takes."""

    width: int
    figures: Tensor
    done: Any
    telling: bool


class DeviceTreeSearch(TreeSearch):
    """`forward(nodes)` -> logits, all on `device`. `say` is told what a person should know. `graphs`: recorded levels by kind."""

    def __init__(
        self, forward: Callable[[Nodes], Tensor], device: Accelerator, pace: Pace, limits: Limits, shape: Shape = NO_SHAPE,
        *, rows: int, say: Callable[[str], None],
    ):  # fmt: skip
        if shape.guess == "on":
            raise UsageError(f"guess=on is for drafts on the processor: on {device.name} tokens are chosen where the text is not.")
        super().__init__(forward, pace, limits, replace(shape, guess="off"))
        self.device, self.rows, self.say = device, rows, say
        self.graphs: OrderedDict[LevelShape, Graph] = OrderedDict()
        self.recording = device.graphs is not None
        self.captured = self.replayed = 0
        self.widest = widest(min(shape.width, MOST_NODES) or WIDEST, shape.depth > 0, rows)
        self._make(STOPS)

    def _make(self, stops: int) -> None:
        """Room for what a draft is given, with so many stop tokens a row; recorded levels are of no use any more."""
        self.graphs.clear()
        self.beam: TensorSearch | None = None
        self.stops = stops
        self.given = PackedTensors.of(*places(self.rows, stops, self.limits.nodes, self.widest), self.device.landing)
        self.given.memory.zero_()
        self.figures = self.device.landing(3 * 8 * len(FIGURES)).view(torch.int64).view(3, -1)
        self.result: PackedTensors | None = None

    @torch.inference_mode()
    def _search(self, trees: list[GrowingTree]) -> None:
        rows = [tree.sequence for tree in trees]
        deepest = max((row.remaining for row in rows), default=1) - 1
        if deepest > 0:
            self._give(rows, [tree.length for tree in trees])
            self._levels(self._kind(rows), len(rows), min(self.shape.depth, deepest))
            self._read(trees)

    def _kind(self, rows: Sequence[TokenSequence]) -> LevelShape:
        sampled = [row.params for row in rows if row.params.temperature > 0]
        return LevelShape(0, len(rows), bool(sampled), any(p.top_k or p.top_p < 1 or p.min_p for p in sampled))

    def _give(self, rows: Sequence[TokenSequence], lengths: Sequence[int]) -> None:
        """All that the levels of a draft look at, in one copy."""
        stops = max(len(row.stop_ids) for row in rows)
        if stops > self.stops:
            self._make(padded(stops))
        given, pace, limits = self.given, self.pace, self.limits
        given["stops"].fill_(-1)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            params, calibration = row.params, self.calibration[row.params.temperature > 0]
            values = {
                "row": row.row, "length": length, "most": min(MOST_NODES, limits.capacity - 1 - length),
                "remaining": row.remaining, "root": row.tokens[-1], "offset": offset(params.seed), "top_k": params.top_k,
                "top_p": params.top_p, "min_p": params.min_p, "temperature": params.temperature, "trust": calibration.trust,
                "hits": calibration.hits, "trials": calibration.trials, "belief": calibration.weights,
                "ranks": calibration.ranks,
            }  # fmt: skip
            for name, value in values.items():
                given[name][i] = torch.tensor(value, dtype=given[name].dtype)
            given["stops"][i, : len(row.stop_ids)] = torch.tensor(sorted(row.stop_ids), dtype=torch.int64)
        given["nodes"][0], given["rate"][0], given["break even"][0] = limits.nodes, pace.rate, pace.break_even
        self.free = limits.filling()
        given["free"][0] = float(self.free)
        costs = {width: pace.cost(width) for width in sorted({padded(i + 1) for i in range(self.widest)})}
        given["cost"].copy_(torch.tensor([costs[padded(i + 1)] for i in range(self.widest)]))
        unit = limits.cost.unit  # of which all nodes cost the same
        shares = [limits.cost.share(first) for first in range(0, limits.nodes + unit, unit)]
        given["share"].copy_(torch.tensor([shares[-(-used // unit)] for used in range(limits.nodes + 1)]))
        self._start(len(rows))

    def _start(self, rows: int) -> None:
        if self.beam is None:
            self.beam = TensorSearch(
                self.forward, self._room, self.shape, rows=self.rows, capacity=self.limits.capacity, stops=self.stops,
                nodes=self.limits.nodes, widest=self.widest,
            )  # fmt: skip
        self.beam.given.memory.copy_(self.given.memory, non_blocking=True)
        self.beam.begin(rows)

    def _room(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.device.where)

    def _levels(self, kind: LevelShape, width: int, forced: int) -> None:
        """Launch levels, the first of this width: so many as are forced, else until none pays. Learn what they took."""
        if forced:
            width = min(self.shape.width, MOST_NODES) * kind.rows
        begun = self._mark()
        levels: list[Launched] = []
        while width and (not forced or len(levels) < forced):
            levels.append(self._launch(kind, padded(width), len(levels)))
            if forced:
                continue
            figures = self._await(levels[-2] if len(levels) > 1 else levels[-1])
            if figures["wish"] and figures["left"] < LIKELY and len(levels) > 1:
                figures = self._await(levels[-1])
            width = figures["wish"]
        self.device.streams.block_until(levels[-1].done)
        for level in levels:
            if level.telling:
                self.pace.record_level(level.width, self.device.streams.seconds_between(begun, level.done))
            begun = level.done

    def _mark(self) -> Any:
        return self.device.streams.record(self.device.streams.current_stream())

    def _await(self, level: Launched) -> dict[str, int]:
        self.device.streams.block_until(level.done)
        return dict(zip(FIGURES, level.figures.tolist(), strict=True))

    def _launch(self, kind: LevelShape, width: int, number: int) -> Launched:
        assert self.beam is not None
        if self.free and not self.limits.filling():
            self.free = False
            self.beam.given["free"].fill_(0.0)
        kind = replace(kind, width=width)
        telling = kind in self.graphs or not self.recording  # recording takes longer
        self._run_level(kind)
        figures = self.figures[number % 3]
        return Launched(width, figures, self.device.late(self.beam.state["figures"], figures), telling)

    def _run_level(self, kind: LevelShape) -> None:
        """By its graph, which the first level of a kind makes; without graphs, or where one cannot be made, op by op."""
        assert self.beam is not None
        graph = self.graphs.get(kind)
        if graph is not None:
            self.graphs.move_to_end(kind)
            graph.replay()
            self.replayed += 1
        elif not self.recording or self.device.graphs is None:
            self.beam.level(kind)
        else:
            while len(self.graphs) >= GRAPHS:  # the latest used are kept
                self.graphs.popitem(last=False)
            try:
                self.graphs[kind] = self.device.graphs.capture(partial(self.beam.level, kind))
                self.captured += 1
            except CaptureError as error:
                self.recording = False
                self.graphs.clear()
                self.say(str(error))

    def _read(self, trees: Sequence[GrowingTree]) -> None:
        """The whole search in one copy; what the host's own would have left behind."""
        assert self.beam is not None
        state = self.beam.state
        if self.result is None:
            self.result = state.alike(self.device.landing)
        self.device.streams.block_until(self.device.late(state.memory, self.result.memory))
        for i, tree in enumerate(trees):
            count = int(self.result["count"][i])
            if count:
                numbers, chances = (self.result[name][i, :count].tolist() for name in ("node", "node chances"))
                _grown(tree, numbers, chances)

    @torch.inference_mode()
    def warm(self, widths: Sequence[int] = (1, 2, 4, 8), seconds: float = 1.0) -> None:
        """As `TreeSearch.warm`, of levels of which every place is inert; those of a single greedy row are recorded by it."""
        self.free = False
        self._start(0)
        super().warm([width for width in widths if width <= self.widest], seconds)

    def _try(self, width: int) -> None:
        self._run_level(LevelShape(width, 1, False, False))
        self.device.finish()


def _grown(tree: GrowingTree, numbers: list[list[int]], chances: list[list[float]]) -> None:
    """The nodes, their children that were never run, and what calibration learns from."""
    tree.tokens = [node[TOKEN] for node in numbers]
    tree.parents = [node[PARENT] for node in numbers]
    tree.deepest = max(node[DEPTH] for node in numbers)
    for i, (node, known) in enumerate(zip(numbers, chances, strict=True)):
        if not node[SPINE]:
            tree.aside[i] = known[CHANCE]
        tokens = node[CHILDREN : CHILDREN + node[FOUND]]
        tree.children[i] = (node[BUCKET], tokens)
        for rank, token in enumerate(tokens):
            if (chance := known[THROUGH + rank]) >= 0:
                tree.pool.append(Candidate(chance, i, token, node[DEPTH] + 1, bool(node[SPINE]) and rank == 0))
