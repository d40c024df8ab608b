"""The exact view. One pass over the slow weights runs all nodes of all rows, whatever their number.

Nodes are packed in tiles of TILE rows. Every tile is one forward of the stock model in a greenlet of its own, always of the same
shape; at each Linear it parks until all tiles are there, and the weight part that has just arrived multiplies them one by one.
So weights arrive once per pass, and a node's bits do not depend on how many others ran with it: the shapes never change.
Where a device gives each row the same bits in any shape, a pass is one forward instead (`whole_pass`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..cache import Cache
from ..devices import Device, SpilledAttention
from ..kernels import team
from ..kernels.attention import AttentionSpec
from ..spilled import SpilledState
from ..tree import Nodes
from .mixtures.routed import Rows
from .narrow_tiles import NarrowTiles
from .output_head import FeatureModel
from .recurrent_layers.mamba1 import give_rates
from .rehearsal import tiles_apart
from .several_devices.stages import Stages
from .streamed import CurrentPass
from .whole_pass import HeadAlone, WholePass, head_of

TILE = 32
# rows of the tiles that a prompt runs in where a model gives each row the same bits in them
WIDE = 128
# nodes of a pass from which on it pays to try that
WORTH_TRYING = 3 * WIDE
# products of the rows of tiles, of which so many are nodes', with streamed Linear `index`
Multiply = Callable[[int, Sequence[Any], int], list[Tensor]]
Settle = Callable[[Tensor, int], Tensor]


def as_they_are(logits: Tensor, first: int) -> Tensor:
    return logits


def _further(settle: Settle, before: int, logits: Tensor, first: int) -> Tensor:
    """`settle`, for a piece of a pass with `before` wanted nodes before it."""
    return settle(logits, before + first)


class Tile(WholePass):
    """`rows` nodes (the last tile of a pass is padded): a forward of the stock model that stops at every Linear."""

    def __init__(
        self, view: Target, nodes: Nodes, wanted: Tensor, first: int, hidden: Tensor | None = None, rows: int = TILE
    ) -> None:  # fmt: skip
        super().__init__(view, nodes, hidden)
        self.padding = rows - self.count
        self.wanted = wanted
        self.first = first
        self.head = len(wanted) > 0
        # None: the only tile of a pass, which has nobody to wait for at its Linears.
        self.thread: greenlet | None = None
        self.result: Tensor | None = None

    def forward(self) -> Tensor | None:  # type: ignore[override]
        """Run the stock model. Returns its logits [rows, vocab], None where nobody wants them."""
        inputs = self.inputs()
        if not self.head:
            self.view.base(**inputs)
            return None
        logits: Tensor = self.view.model(**inputs).logits
        return logits[0]

    def logits(self) -> Tensor:
        """[k, vocab] of the wanted nodes, once this is done; a view where they are neighbours."""
        assert self.result is not None
        first, last = int(self.wanted[0]), int(self.wanted[-1])
        neighbours = last - first + 1 == len(self.wanted)
        return self.result[first : last + 1] if neighbours else self.result[self.wanted.to(self.result.device)]

    def linear(self, index: int, x: Rows) -> Tensor:
        if self.thread is None:
            return self.view.multiply(index, [x], self.count)[0]
        result: Tensor = getcurrent().parent.switch((index, x))
        return result

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        state, view = self.view.cache.layer(layer, spec.window), self.view
        if not isinstance(state, SpilledState):
            return super().attend(layer, query, spec)
        assert view.attend_spilled is not None, "keys and values spill where nothing attends to them"
        out = view.attend_spilled(query[: self.count], state, self.placed.at(layer)[1], spec)
        return nn.functional.pad(out, (0, 0, 0, 0, 0, self.padding))


@dataclass
class Target:
    """The target view: runs passes with the exact weights. `model` is the stock causal model, `base` the same without its head.

    multiply(index, tiles, rows) streams Linear `index` once; skip_head() ends a pass that wants no logits. `whole`: a pass is one
    forward, not one for each tile; `widest`: rows of the largest tile; `untried`: the outputs of each Linear, until it was tried
    whether that may grow; `narrow`: heights of low tiles, None: there are none. `stages`: which device runs which layers; None:
    there is one, or it runs all of them."""

    model: nn.Module
    base: nn.Module
    current: CurrentPass
    cache: Cache
    embed: Callable[[Tensor], Tensor]
    multiply: Multiply
    device: Device
    skip_head: Callable[[], None] = lambda: None
    whole: bool = False
    widest: int = TILE
    untried: Sequence[int] = ()
    narrow: NarrowTiles | None = None
    stages: Stages | None = None

    def __post_init__(self) -> None:
        give_rates(self.model, self.cache.recurrent)

    def __call__(
        self, nodes: Nodes, wanted: Tensor, settle: Settle = as_they_are, hidden: Tensor | None = None
    ) -> Tensor:
        """Run `nodes` and write their keys and values to the cache. Returns the joined results of `settle`.

        `settle(logits [k, vocab], first)` is called once per tile, or for all at once where a pass is one forward, with the logits
        of wanted[first : first + k] (`wanted`: indices of nodes, ascending). `hidden` [len(nodes), taps, hidden size] is filled
        with the hidden states of all nodes at the installed taps.

        Raises TransferError where weights do not arrive. The cache's lengths are untouched then, but the rows must be rewound: a
        layer with a sliding window may have lost what came before a long prompt."""
        self.cache.begin_pass(nodes)
        if self.stages is None:
            return self._together(nodes, wanted, settle, hidden)
        work = []
        for start, end in self.stages.pieces(len(nodes)):
            first, last = torch.searchsorted(wanted, torch.tensor([start, end])).tolist()
            room = None if hidden is None else hidden[start:end]
            told = partial(_further, settle, first)
            work.append(partial(self._together, nodes[start:end], wanted[first:last] - start, told, room))
        settled = [found for found in self.stages.flow(work) if len(found)]
        return torch.cat(settled) if settled else torch.empty(0)

    def _together(self, nodes: Nodes, wanted: Tensor, settle: Settle, hidden: Tensor | None) -> Tensor:
        """What `__call__` does, for nodes that use each weight at the same time."""
        if self.whole:
            return self._all_at_once(nodes, wanted, settle, hidden)
        tiles: list[Tile] = []
        settled: list[Tensor] = []
        for start, rows in self._cut(len(nodes), wanted):
            part = slice(start, start + rows)
            first, last = torch.searchsorted(wanted, torch.tensor([start, start + rows])).tolist()
            room = None if hidden is None else hidden[part]
            tiles.append(Tile(self, nodes[part], wanted[first:last] - start, first, room, rows))
        with closing(self._shared(tiles) if len(tiles) > 1 else self._alone(tiles[0])) as done:
            for tile in done:
                if tile.head:
                    settled.append(settle(tile.logits(), tile.first))
                    tile.result = None
        if not settled:
            self.skip_head()
            return torch.empty(0)
        return torch.cat(settled)

    def _cut(self, nodes: int, wanted: Tensor) -> Iterator[tuple[int, int]]:
        """The first node and the rows of each tile of a pass of so many nodes: the widest where no logits are wanted, and a low one
        for what is left at the end."""
        start = 0
        while start < nodes:
            rows = TILE
            if self.widest > TILE and start + self.widest <= nodes:
                first, last = torch.searchsorted(wanted, torch.tensor([start, start + self.widest])).tolist()
                rows = self.widest if first == last else TILE
            if self.narrow is not None:
                rows = self.narrow.rows(nodes - start, rows)
            yield start, rows
            start += rows

    def _all_at_once(self, nodes: Nodes, wanted: Tensor, settle: Settle, hidden: Tensor | None) -> Tensor:
        """What `__call__` does, in one forward for all nodes, with all logits at once."""
        try:
            # Copied now: after the layers the host would wait for all of them.
            there = wanted.to(self.device.where)
            self.current.under_way = under_way = WholePass(self, nodes, hidden)
            features = under_way.forward()
            if not len(wanted):
                self.skip_head()
                return torch.empty(0)
            logits = head_of(self, features, there)
        finally:
            self.current.under_way = None
        return settle(logits, 0)

    def widen(self, nodes: Nodes) -> bool:
        """Before a pass of `nodes`: let tiles have WIDE rows from now on, if that changes no bit. False where it would. Low tiles
        are tried too.

        It is tried once, when a pass is large enough, and where layers are recurrent the cache has an empty row; it takes a few per
        cent of that pass."""
        if self.narrow is not None:
            self.narrow.consider(self, nodes, TILE)
        possible = not self.cache.recurrent or 0 in self.cache.lengths
        if not self.untried or len(nodes) < WORTH_TRYING or not possible:
            return True
        apart = tiles_apart(self, self.untried, WIDE, TILE)
        self.widest, self.untried = WIDE if apart else TILE, ()
        return apart

    def prompts_wide(self, nodes: Nodes) -> bool:
        """Whether most of a pass of `nodes` goes in tiles of WIDE rows."""
        return self.widest == WIDE and len(nodes) >= 2 * WIDE

    def head(self, features: Tensor) -> Tensor:
        """Logits [n, vocab] of features [n, hidden size], by the exact weights of the output head."""
        # No layer runs any more: nothing but Linears is asked of it.
        last: Any = HeadAlone(self)
        self.current.under_way = last
        return self._features(features)

    @cached_property
    def attend_spilled(self) -> SpilledAttention | None:
        """What attends where keys and values spill."""
        return self.device.spilled_attention()

    @cached_property
    def _features(self) -> FeatureModel:
        return FeatureModel(self.model)

    def _alone(self, tile: Tile) -> Generator[Tile, None, None]:
        """Run the only tile of a pass; yield it when it is done."""
        self.current.under_way = tile
        try:
            tile.result = tile.forward()
            yield tile
        finally:
            self.current.under_way = None

    def _shared(self, tiles: list[Tile]) -> Generator[Tile, None, None]:
        """`_run`, where torch's operations have more threads in wide tiles alone, not in others nor in what is done with logits."""
        stock = torch.get_num_threads()
        if self.widest == TILE or stock == 1:
            yield from self._run(tiles, None)
            return
        with team.stock_alone():
            yield from self._run(tiles, stock)

    def _run(self, tiles: list[Tile], stock: int | None) -> Generator[Tile, None, None]:
        """Run all tiles side by side; yield each one when it is done, in their order. `stock`: threads of torch's operations in
        wide tiles; None: those that they have."""
        threads = [greenlet(tile.forward) for tile in tiles]
        for tile, thread in zip(tiles, threads, strict=True):
            tile.thread = thread
        answers: list[object] = [None] * len(tiles)
        alive = list(range(len(tiles)))
        try:
            while alive:
                parked = []
                for i in alive:
                    self.current.under_way = tiles[i]
                    answer, answers[i] = answers[i], None
                    given = () if answer is None else (answer,)
                    del answer
                    if stock is not None and tiles[i].count == WIDE:
                        with team.shared_by(team.threads(), stock):
                            said = threads[i].switch(*given)
                    else:
                        said = threads[i].switch(*given)
                    del given
                    if threads[i].dead:
                        tiles[i].result = said
                        yield tiles[i]
                    else:
                        parked.append((i, said))
                alive = [i for i, _ in parked]
                if parked:
                    index = parked[0][1][0]
                    assert all(said[0] == index for _, said in parked), (
                        f"tiles are at different Linears: {[s[0] for _, s in parked]}"
                    )
                    rows = sum(tiles[i].count for i in alive)
                    for i, y in zip(alive, self.multiply(index, [said[1] for _, said in parked], rows), strict=True):
                        answers[i] = y
        finally:
            self.current.under_way = None
            for thread in threads:
                if not thread.dead:
                    thread.throw()
