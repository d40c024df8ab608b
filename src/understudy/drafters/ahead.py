"""Drafting ahead: while a pass verifies a tree, the next one is drafted, on a queue of work of its own.

It begins at the end of the tree's likeliest chain, whose children are guesses of the bonus token. The pass overwrites the keys and
values of the tree's nodes layer by layer, so nodes drafted ahead see copies of the chain's, made before the pass; copies and nodes
lie in slots of the row that nothing else uses meanwhile. If the pass accepts just that chain, and its bonus token was guessed, the
next draft goes on from there; if not, what was drafted ahead is dropped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from ..cache import Cache
from ..plan.widths import padded
from ..sequence import TokenSequence
from ..ways import WayChoice
from .device_given import DraftOrigin
from .device_state import LevelShape
from .device_subtree import below, child_of_root, subtree
from .growing_tree import MOST_NODES, GrowingTree
from .launch import DeviceTreeSearch
from .packed_tensors import PackedTensors
from .search import Search

# Tokens that must still be wanted after what a tree's chain gives: the bonus token, one that is drafted, and one after that.
WANTED = 3


@dataclass
class Flight:
    """A draft ahead of one pass."""

    origin: DraftOrigin
    # The text's tokens before the pass, and those that the pass must accept for the draft to be of use.
    held: int
    chain: list[int]
    # Is the pass under way?
    going: bool = True
    # Levels that were run.
    levels: int = 0

    def fits(self, sequence: TokenSequence) -> bool:
        """Did the pass accept the chain and nothing after it?"""
        text = sequence.tokens
        return len(text) == self.held + len(self.chain) + 1 and text[self.held : -1] == self.chain


@dataclass
class _Round:
    """A round whose pass is over: it is judged with the draft after it, which is what drafting ahead makes shorter."""

    sequence: TokenSequence
    # Was there a draft ahead (2 things side by side) or not (1)?
    way: int
    # Levels recorded by then: recording takes long.
    recorded: int
    tokens: int = 0
    # Of the pass; 0: it is not over.
    seconds: float = 0.0


@dataclass
class AheadSearch:
    """Runs `search` in front of passes, and beside them for rounds of one text. `always`: it does so in every round; else in those
    in which that gives more tokens a second."""

    search: DeviceTreeSearch
    cache: Cache
    always: bool = False
    choice: WayChoice = field(default_factory=WayChoice)
    # The latest draft ahead, until a draft makes use of it or drops it.
    flight: Flight | None = None
    # Seconds of the latest draft, and the round that is not judged yet.
    drafting: float = 0.0
    round: _Round | None = None
    # Memory for what a draft goes on from.
    room: PackedTensors | None = None

    @torch.inference_mode()
    def run(self, trees: list[GrowingTree]) -> None:
        """Add levels to trees of one node each, as long as they pay, or go on from what was drafted ahead."""
        if not trees:
            return
        start = time.perf_counter()
        flight, self.flight = self.flight, None
        mine = next((tree for tree in trees if flight is not None and tree.sequence is flight.origin.sequence), None)
        if flight is None or mine is None:
            self.search.run(trees)
        else:
            mine.ahead_levels = flight.levels
            mine.ahead_used = len(trees) == 1 and mine.levels > 0 and flight.fits(mine.sequence) and self._went_on(mine, flight)
            if not mine.ahead_used:
                self.search.run(trees)
        self.drafting = time.perf_counter() - start
        self._judge(trees)

    def _went_on(self, tree: GrowingTree, flight: Flight) -> bool:
        """Go on with what was drafted ahead below the bonus token, which is the root of `tree`; False where nothing was."""
        state = self.search.result()
        top = child_of_root(state, tree.tokens[0])
        if top is None:
            return False
        if self.room is None:
            self.room = state.alike(self.search.device.landing)
        kept = below(state, top)
        self.cache.move(tree.sequence.row, flight.origin.slot + torch.tensor(kept), tree.length + torch.arange(len(kept)))
        self.search.go_on(tree, subtree(state, kept, tree.length, self.room))
        tree.nodes_run -= len(kept)
        assert tree.tokens[0] == tree.sequence.tokens[-1], "a draft follows the text"
        return True

    def forget(self, sequence: TokenSequence) -> None:
        """Drop what was drafted ahead for `sequence`."""
        if self.flight is not None and self.flight.origin.sequence is sequence:
            self.flight = None

    @contextmanager
    def meanwhile(self, trees: list[GrowingTree]) -> Iterator[None]:
        """A block in which the pass that verifies `trees` runs."""
        self.flight = self.round = None
        path = likeliest_chain(trees[0]) if len(trees) == 1 and self.search.recording else []
        origin = self._origin(trees[0], path) if path else None
        if origin is None or not self._chosen(trees[0].sequence):
            yield
            return
        flight = self._prepare(trees[0], path, origin)
        with ThreadPoolExecutor(1, "understudy-ahead") as thread:
            levels = thread.submit(self._fly, flight, self.search.device.mark())
            try:
                yield
            finally:
                flight.going = False
        flight.levels = levels.result()
        self.flight = flight if flight.levels else None

    def _origin(self, tree: GrowingTree, path: list[int]) -> DraftOrigin | None:
        """Where a draft ahead of the pass over `tree` begins: at the end of `path`, its likeliest chain. None where there can be
        none."""
        sequence = tree.sequence
        token, depth = tree.tokens[path[-1]], len(path) - 1
        slot = tree.length + len(tree.tokens) + depth
        # What a node sees beyond the text must fit into its tail.
        remaining = min(sequence.remaining - depth, MOST_NODES - 1 - depth)
        roomy = self.search.policy.limits.capacity - 1 - slot >= 2 and remaining >= WANTED
        free = sequence.grammar is None and not sequence.params.adjusts and token not in sequence.stop_ids
        kind = replace(LevelShape.of([sequence]), width=padded(1))
        if not (roomy and free and kind in self.search.graphs):
            return None
        return DraftOrigin(sequence, token, tree.length + depth, slot, tree.length, remaining)

    def _chosen(self, sequence: TokenSequence) -> bool:
        """Begin a round; should there be a draft ahead in it?"""
        way = 2 if self.always else self.choice.of(int(sequence.params.temperature > 0), 2)
        self.round = _Round(sequence, way, self.search.captured)
        return way > 1

    def _prepare(self, tree: GrowingTree, path: list[int], origin: DraftOrigin) -> Flight:
        """Copy what the nodes of the chain `path` left in the cache, and hand over what the levels look at."""
        copies = tree.length + len(tree.tokens) + torch.arange(len(path) - 1)
        self.cache.move(origin.sequence.row, tree.length + torch.tensor(path[:-1], dtype=torch.int64), copies)
        self.search.prepare(origin, copies)
        return Flight(origin, len(origin.sequence.tokens), [tree.tokens[node] for node in path[1:]])

    def _fly(self, flight: Flight, ready: object) -> int:
        """Run levels until the pass is over; returns how many. `ready`: the event after which all that they look at is there."""
        device = self.search.device
        assert device.graphs is not None, "only recorded levels are run ahead"
        with torch.inference_mode(), device.at_work(), device.graphs.beside(ready):
            return self.search.run_ahead(flight.origin, lambda: flight.going)

    def record_round(self, tokens: int, seconds: float) -> None:
        """Learn that a round gave `tokens` in `seconds`, drafting included."""
        if self.round is not None:
            self.round.tokens, self.round.seconds = tokens, seconds - self.drafting

    def _judge(self, trees: list[GrowingTree]) -> None:
        """Learn what the latest round gave, now that the draft after it is done."""
        over, self.round = self.round, None
        same = over is not None and [tree.sequence for tree in trees] == [over.sequence]
        if over is not None and same and over.seconds > 0 and over.recorded == self.search.captured:
            kind = int(over.sequence.params.temperature > 0)
            self.choice.learn(kind, over.way, over.tokens, over.seconds + self.drafting)


def likeliest_chain(tree: GrowingTree) -> list[int]:
    """The nodes of the likeliest chain of `tree`, the root first: each is its parent's first choice of those that are nodes."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(node)
    path = [0]
    while path[-1] in children:
        _, tokens = tree.children[path[-1]]
        path.append(min(children[path[-1]], key=lambda node: tokens.index(tree.tokens[node])))
    return path


def obstacle(search: Search, cache: Cache) -> str:
    """Why drafts cannot be made ahead of passes here, in a few words; empty: they can."""
    if not isinstance(search, DeviceTreeSearch):
        return "groups of texts have searches of their own"
    if not search.recording:
        return "levels are not recorded on this device"
    if type(cache) is not Cache or cache.needs_points or cache.spilled is not None:
        return "not all layers hold the keys and values of all tokens where any slot of a row may be used"
    return ""
