"""Drafting on a device: levels of `device_search` are launched one after another, without waiting for the latest one.

Level n + 1 is launched as soon as the results of level n - 1 arrive, so its width lags one level behind. The lag is always the
same, so a tree depends on the search alone and not on timing. Near the end of a draft the host waits for the last level in
place of launching one that may be useless: that pause is a small part of what a useless level takes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..devices import Device
from ..devices.graphs import CaptureError, Graph
from ..errors import KernelError
from ..plan.widths import GRAPHS, padded, widest
from ..sequence import TokenSequence
from .device_adjust import DeviceAdjustment
from .device_given import DraftOrigin, give_costs, give_origins
from .device_guesses import DeviceGuesses, give_guesses
from .device_search import TensorSearch
from .device_state import FIGURES, LevelShape, SearchSizes, grown
from .device_subtree import Grown
from .growing_tree import MOST_NODES, GrowingTree
from .kernel_search import KernelSearch
from .pace import WIDEST
from .packed_tensors import PackedTensors
from .policy import DraftPolicy
from .proposer import Proposer
from .suggest import Suggester, Suggestion

T = TypeVar("T")
Going = Callable[[], bool]
# With fewer levels that are likely to pay after the next one, the last level's figures are awaited.
LIKELY = 2
# Stop tokens of a sequence that there is room for at first.
STOPS = 8


@dataclass
class Launched:
    """A level under way."""

    width: int
    # Its figures, in host memory, once `done` has happened.
    figures: Tensor
    # The event after its last work.
    done: Any
    # Does its time tell what levels of this kind take? Not while one is recorded.
    telling: bool


class DeviceTreeSearch:
    """Grows trees with `proposer`, whose inputs and outputs all lie on `device`; `say` is told what the user should know. `rows`,
    `level`: the most sequences, and nodes of a level; 0: as suits the cache. `suggester` says chains that first levels check."""

    def __init__(
        self, proposer: Proposer, device: Device, policy: DraftPolicy, say: Callable[[str], None], rows: int = 0, level: int = 0,
        suggester: Suggester | None = None,
    ):  # fmt: skip
        self.proposer = proposer
        self.device = device
        self.policy = policy
        self.say = say
        self.rows = rows or proposer.cache.rows
        self.widest = level or widest(min(policy.shape.width, MOST_NODES) or WIDEST, policy.shape.depth > 0, self.rows)
        self.guesses = DeviceGuesses(suggester, policy, self.widest)
        # Recorded levels, the latest used last.
        self.graphs: OrderedDict[LevelShape, Graph] = OrderedDict()
        self.recording = device.graphs is not None
        # None: torch's operations search.
        self.kernels = device.search_kernels()
        self.captured = 0
        self.replayed = 0
        # Was the link filling the ring when the draft began, and until now?
        self.free = False
        self._make(STOPS)

    def _make(self, stops: int) -> None:
        """Make room for what a draft is given, with so many stop tokens a sequence; recorded levels are of no use any more."""
        self.graphs.clear()
        self.tensors: TensorSearch | None = None
        self.adjustment: DeviceAdjustment | None = None
        self.stops = stops
        limits = self.policy.limits
        self.sizes = SearchSizes(self.rows, limits.capacity, stops, limits.nodes, self.widest)
        self.given = PackedTensors.of(*self.sizes.given(), self.device.landing)
        self.given.memory.zero_()
        self.figures = self.device.landing(3 * 8 * len(FIGURES)).view(torch.int64).view(3, -1)
        self.found: PackedTensors | None = None

    def drop(self) -> None:
        """Let go of all memory on the device."""
        self._make(self.stops)

    @torch.inference_mode()
    def run(self, trees: list[GrowingTree]) -> None:
        with self.policy.turn:
            self._run(trees)

    def _run(self, trees: list[GrowingTree]) -> None:
        deepest = max((tree.levels for tree in trees), default=0)
        if deepest > 0:
            origins = [DraftOrigin.of(tree.sequence, tree.length) for tree in trees]
            found = self.guesses.chosen(trees)
            levels = self._searched(lambda: self._draft(origins, found, min(self.policy.shape.depth, deepest)))
            self._read(trees)
            self.guesses.learn(trees, found)
            for tree in trees:
                tree.levels_run = levels

    def _draft(self, origins: Sequence[DraftOrigin], found: Sequence[Suggestion], forced: int) -> int:
        """Launch the levels of one draft, the first of which checks what was `found`; returns how many."""
        self._give(origins)
        guesses = give_guesses(self.given, found)
        self._start(len(origins), guesses)
        return self._levels(LevelShape.of([one.sequence for one in origins]), len(origins) + guesses, forced, None, guesses > 0)

    def prepare(self, origin: DraftOrigin, seen: Tensor) -> None:
        """Hand over what levels of `run_ahead` look at. The root sees the slots `seen` [m] beyond what lies straight."""
        self._give([origin], free=True)
        self.free = False  # whether the ring fills is no matter beside a pass
        self._start(1)
        assert self.tensors is not None
        self.tensors.see(0, seen)

    def run_ahead(self, origin: DraftOrigin, going: Going) -> int:
        """Launch levels after `prepare` as long as `going` says so, they pay and are recorded. Returns how many, once all are done.

        What they take beside a pass is not what levels take, and is not learned."""
        with self.policy.turn:
            return self._levels(LevelShape.of([origin.sequence]), 1, 0, going)

    def go_on(self, tree: GrowingTree, held: Grown) -> None:
        """Go on from nodes that lie in the cache as those of `tree`, which has its root alone, until no level pays."""
        with self.policy.turn:
            tree.levels_run = self._searched(lambda: self._go_on(DraftOrigin.of(tree.sequence, tree.length), held))
            self._read([tree])

    def _go_on(self, origin: DraftOrigin, held: Grown) -> int:
        self._give([origin])
        self._start(1)
        assert self.tensors is not None
        self.tensors.take_over(held)
        figures = self.figures[2]
        known = Launched(0, figures, self.device.late(self.tensors.state["figures"], figures), False)
        return self._levels(LevelShape.of([origin.sequence]), self._await(known)["wish"], 0)

    @torch.inference_mode()
    def measure(self, width: int) -> float:
        """Every place of the level is inert; that of a single greedy sequence is recorded by it."""
        return self._searched(lambda: self._measure(width))

    def _measure(self, width: int) -> float:
        self.free = False
        self._start(0)
        self.device.finish()
        start = time.perf_counter()
        self._run_level(LevelShape(width, 1, False, False))
        self.device.finish()
        return time.perf_counter() - start

    def _searched(self, work: Callable[[], T]) -> T:
        """What `work` returns, from its beginning; done again by torch's operations where the device's own kernels do not run."""
        try:
            return work()
        except KernelError as error:
            self.kernels = None
            self.say(f"{error}: torch's operations search, which is slower")
            self._make(self.stops)
        return work()

    def _give(self, origins: Sequence[DraftOrigin], free: bool = False) -> None:
        """Put down all that the levels of a draft look at. `free`: they cost nothing, whether or not the link fills the ring."""
        sequences = [origin.sequence for origin in origins]
        stops = max(len(sequence.stop_ids) for sequence in sequences)
        if stops > self.stops:
            self._make(padded(stops))
        give_origins(self.given, origins, self.policy)
        self.free = free or self.policy.limits.filling()
        give_costs(self.given, self.policy, self.widest, self.free)
        self._give_adjustments(sequences)

    def _give_adjustments(self, sequences: Sequence[TokenSequence]) -> None:
        """Hand over what biases and penalties look at, where there are any: it takes a copy of its own."""
        if not any(sequence.params.adjusts for sequence in sequences):
            return
        biases = max(len(sequence.params.biases) for sequence in sequences)
        if self.adjustment is None or biases > self.adjustment.biases:
            # Recorded levels look at the old place.
            self.graphs.clear()
            capacity = self.policy.limits.capacity
            self.adjustment = DeviceAdjustment(self.rows, capacity, padded(max(biases, 1)), self.device.landing, self._room)
        self.adjustment.give(sequences)

    def _start(self, rows: int, guesses: int = 0) -> None:
        """Begin a draft of `rows` sequences on the device, with what was given: `guesses` nodes of it lie behind the roots."""
        if self.tensors is None:
            search = TensorSearch if self.kernels is None else partial(KernelSearch, self.kernels)
            self.tensors = search(self.proposer.forward, self._room, self.policy.shape, self.sizes)
        self.tensors.adjustment = self.adjustment
        self.tensors.given.memory.copy_(self.given.memory, non_blocking=True)
        self.tensors.begin(rows, guesses)

    def _room(self, nbytes: int) -> Tensor:
        return self.device.arena(nbytes).zero_()

    def _levels(self, kind: LevelShape, width: int, forced: int, going: Going | None = None, guessed: bool = False) -> int:
        """Launch `forced` levels, or until none pays if that is 0, the first of this width, and learn what they took. Returns how
        many. `going`: see `run_ahead`. `guessed`: the first one also checks guesses."""
        if forced:
            width = min(self.policy.shape.width, MOST_NODES) * kind.rows
        begun = self.device.mark()
        levels: list[Launched] = []
        while width and (not forced or len(levels) < forced):
            this = replace(kind, width=padded(width), guessed=guessed and not levels)
            if going is not None and not (this in self.graphs and going()):
                break
            levels.append(self._launch(this, len(levels)))
            if forced:
                continue
            figures = self._await(levels[-2] if len(levels) > 1 else levels[-1])
            if figures["wish"] and figures["left"] < LIKELY and len(levels) > 1:
                figures = self._await(levels[-1])
            width = figures["wish"]
        if levels:
            self._wait(levels[-1].done)
        for level in levels if going is None else ():
            if level.telling:
                self.policy.pace.record_level(level.width, self.device.seconds_between(begun, level.done))
            begun = level.done
        return len(levels)

    def _wait(self, event: Any) -> None:
        with self.policy.elsewhere():
            self.device.wait_for(event)

    def _await(self, level: Launched) -> dict[str, int]:
        self._wait(level.done)
        return dict(zip(FIGURES, level.figures.tolist(), strict=True))

    def _launch(self, kind: LevelShape, number: int) -> Launched:
        assert self.tensors is not None
        if self.free and not self.policy.limits.filling():
            self.free = False
            self.tensors.given["free"].fill_(0.0)
        telling = kind in self.graphs or not self.recording  # recording takes longer
        with self.policy.elsewhere():
            self._run_level(kind)
        figures = self.figures[number % 3]
        return Launched(kind.width, figures, self.device.late(self.tensors.state["figures"], figures), telling)

    def _run_level(self, kind: LevelShape) -> None:
        """Replay the graph of this kind of level, which its first level records. Without graphs, run it operation by operation."""
        assert self.tensors is not None
        graph = self.graphs.get(kind)
        if graph is not None:
            self.graphs.move_to_end(kind)
            graph.replay()
            self.replayed += 1
        elif not self.recording or self.device.graphs is None:
            self.tensors.level(kind)
        else:
            while len(self.graphs) >= GRAPHS:  # the latest used are kept
                self.graphs.popitem(last=False)
            try:
                self.graphs[kind] = self.device.graphs.capture(partial(self.tensors.level, kind))
                self.captured += 1
            except CaptureError as error:
                self.recording = False
                self.graphs.clear()
                self.say(str(error))

    def result(self) -> PackedTensors:
        """The whole search, in one copy in memory of the host."""
        with self.policy.turn:
            return self._brought()

    def _brought(self) -> PackedTensors:
        assert self.tensors is not None
        state = self.tensors.state
        if self.found is None:
            self.found = state.alike(self.device.landing)
        self._wait(self.device.late(state.memory, self.found.memory))
        return self.found

    def _read(self, trees: Sequence[GrowingTree]) -> None:
        """Bring back the search, and put it in `trees` as the processor's own search would have."""
        result = self._brought()
        for i, tree in enumerate(trees):
            count = int(result["count"][i])
            if count:
                numbers, chances = (result[name][i, :count].tolist() for name in ("node", "node chances"))
                grown(tree, numbers, chances)
