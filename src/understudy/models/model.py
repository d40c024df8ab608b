"""A stock model bound to a Store under a Plan: its target view, its draft view, its cache, and the stream between."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache
from ..devices import Device, SharedWork
from ..errors import UnderstudyError
from ..plan.memory import columns_of
from ..plan.placement import Plan
from ..rectangle import PaddedCache
from ..spilled import Spill
from ..tiers import ReadSettings
from ..tiers.ring import Ring
from ..tree import Nodes
from ..weights.store import Store
from .cost import PassCost
from .draft import Draft
from .embedding import opened_lookup
from .narrow_tiles import NarrowTiles
from .output_head import OutputHead
from .rehearsal import rows_apart
from .several_devices.lanes import LaneLost, lost_line, open_lanes, out_of_memory_line
from .several_devices.split import drafts_of_all, give_back, staged, supply_of_all
from .stock import structure
from .stock.heads import refuse_wrong_head
from .stock.shape import ModelShape, cache_dtype, keeps_states
from .stream.supply import Supply
from .stream.weights import Weights
from .streamed import CurrentPass, attention_name, pair
from .taps import install
from .target import TILE, Settle, Target, as_they_are
from .whole_pass import AT_ONCE

Report = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Uses:
    """What a drafter uses of a model that verifies."""

    # Substitutes of all Linears, and that of the output head.
    drafts: bool
    scores: bool
    # Hidden states that passes hand out, see `models.taps`.
    taps: tuple[int, ...] = ()


class Model:
    """A loaded model: `verify(nodes, wanted)` runs the target, `draft(nodes)` the substitute. `cost` learns what passes take."""

    tile = TILE
    # A second model that drafts.
    companion: Model | None = None

    def __init__(
        self,
        store: Store,
        config: Any,
        plan: Plan,
        settings: ReadSettings,
        dtype: torch.dtype,
        uses: Uses,
        devices: Sequence[Device],
        report: Report | None = None,
        directory: Path | None = None,
    ) -> None:
        device, *further = devices
        self.store = store
        self.config = config
        self.plan = plan
        self.dtype = dtype
        self.device = device
        self.devices = tuple(devices)
        self.module = structure.skeleton(config, dtype, attention_name())
        # What a drafter lets go of once the device is lost.
        self.drops: list[Callable[[], None]] = []
        # Why nothing on the device can be trusted any more.
        self._lost: UnderstudyError | None = None
        refuse_wrong_head(self.module, store)
        self.current = CurrentPass()
        # Found by their Linears, which `pair` takes away.
        self.blocks = structure.decoder_blocks(self.module)[1]
        install(self.module, uses.taps, self.current)
        pair(self.module, [spec.module for spec in store.layout.linears], self.current)
        self.taps = tuple(uses.taps)
        shape = ModelShape.of(config, small=plan.kv_bits > 0, latent=keeps_states(devices))
        self.hidden_size = shape.hidden_size
        progress = None if report is None else lambda done, total: report("loading", done, total)
        self.weights = Weights(store, plan, settings, device, drafts=uses.drafts, scores=uses.scores, progress=progress)
        self.weights.share(self.module, dtype, directory, states=shape.latent)
        spill = Spill(directory or Path(), settings, plan.spill_latest, plan.spill_threads) if plan.spill_latest else None
        self.stages = staged(self.blocks, devices, plan)
        places = [device.where if self.stages is None else self.stages.device(layer).where for layer in range(len(shape.layers))]
        self.cache = _cache(shape, plan, dtype, device, places, spill)
        spilled = "" if self.cache.spill_store is None else self.cache.spill_store.file.note
        self.plan = self.plan.noted(spilled, shape.note_on(device))
        hauls = self.weights.hauls(plan.ring_bytes)
        self.ring = self.weights.ring(plan.ring_bytes, hauls)
        supply = Supply(self.weights.parts, self.weights.linears, self.weights.residents, hauls, self.ring)
        self.lanes = open_lanes(further, plan, store, settings, uses.drafts)
        self.supply = supply_of_all(supply, self.weights, self.lanes, plan)
        fused = self.supply.fused(dtype)
        self._learning = threading.Lock()  # passes of several groups of texts end at the same time
        self._work: SharedWork = "pass" if fused else "stock pass"
        self.cost = PassCost(1 if fused else TILE)
        # Where drafted tokens are chosen on the device, their rows must lie there.
        self.lookup = opened_lookup(self.module, store, device, whole=uses.drafts and not device.drafts_see_text)
        base = self.module.get_submodule(str(self.module.base_model_prefix))
        views = (self.current, self.cache, self.lookup)
        self.target = Target(self.module, base, *views, self.supply.multiply, device, self.supply.skip_head, stages=self.stages)
        self._join_tiles()
        self._fit_stages()
        drafts = drafts_of_all(self.weights, self.lanes, dtype) if uses.drafts else {}
        self.draft = Draft(self.module, *views, drafts, device, self.stages)
        # How much of it the draft runs in fewer steps than the stock modules.
        self.fused = self.draft.fuse(shape.vocabulary, self.plan.context) if uses.drafts else 0
        self.vocabulary = shape.vocabulary
        self._score: OutputHead | None = None
        if uses.drafts or uses.scores:
            last = len(store.linears) - 1
            head = self.draft.linears[last] if uses.drafts else self.weights.head(dtype)
            self._score = OutputHead(self.module, self.current, last, head)

    def _join_tiles(self) -> None:
        """Let a pass be one forward, where the device has a product for that and this model's rows do not know each other."""
        outputs = [entry.spec.outputs for entry in self.weights.entries]
        if self.supply.fused(self.dtype) and not (self.plan.padded_rows or self.plan.spill_latest or self.stages):
            self.target.untried, self.target.narrow = outputs, NarrowTiles(outputs)
        if self.device.row_product() is None or self.supply.fused(self.dtype):
            return
        if rows_apart(self.target, outputs, self.plan.context):
            self.target.whole = True
            self.cost = PassCost(AT_ONCE)
        else:
            why = "rows of this model have other bits in passes of other sizes"
            self.plan = self.plan.noted(f"passes run tile by tile, which is slower: {why}")

    def _fit_stages(self) -> None:
        """Tell the stages, where there are some, what passes are like."""
        if self.stages is not None:
            step = 1 if self.supply.fused(self.dtype) else TILE
            self.stages.fit(self.target.whole, step, streams=bool(self.plan.streamed_bytes), groups=self.groups)

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings [n, hidden size] of tokens [n], on the device, as the model's first layer is given them but for what its
        class does to them after the lookup."""
        embedded: Tensor = self.lookup.tables[0].module(self.lookup.tables[0](tokens))
        return embedded

    def score(self, features: Tensor) -> Tensor:
        """Logits [..., vocab] of features [..., hidden size], as after the final norm, by the draft's copy of the output head."""
        assert self._score is not None, "the copy of the output head is not held"
        return self._score(features)

    def verify(self, nodes: Nodes, wanted: Tensor, settle: Settle = as_they_are) -> tuple[Tensor, Tensor | None]:
        """Run the target, and tell `cost` how long the arithmetic took and how long the pass waited for weights.

        Returns the joined results of `settle`, which gets the logits of `wanted` tile by tile (see `Target`), and the hidden
        states of all nodes [n, taps, hidden size], or None without taps. Raises TransferError where weights do not arrive;
        `guard` then prepares the next pass."""
        hidden = self._hidden(len(nodes))
        if not self.target.widen(nodes):
            why = "rows of this model have other bits in tiles of other sizes"
            self.say(f"prompts are read {TILE} tokens at a time, which is slower: {why}")
        with self.device.sharing("prompt" if self.target.prompts_wide(nodes) else self._work, len(nodes)):
            start, waited = time.perf_counter(), self._waited()
            settled = self.target(nodes, wanted, settle, hidden)
            self.device.finish()
        seconds = time.perf_counter() - start
        waited = self._waited() - waited
        with self._learning:
            # More nodes go to more experts, so what is waited for grows with them as arithmetic does.
            late = 0.0 if self.plan.mixture and self.plan.mixture.streamed_bytes else waited
            self.cost.learn(len(nodes), seconds - late, late)
        return settled, hidden

    def draft_tapped(self, nodes: Nodes) -> tuple[Tensor, Tensor]:
        """Logits [n, vocab] after each of `nodes` by the substitute, as `draft` gives them, and its hidden states [n, taps, hidden
        size] at the taps, of which there must be one at least. They resemble the target's."""
        hidden = self._hidden(len(nodes))
        assert hidden is not None, "no hidden states are tapped"
        return self.draft(nodes, hidden), hidden

    def _hidden(self, nodes: int) -> Tensor | None:
        """Room for the hidden states of so many nodes at all taps."""
        if not self.taps:
            return None
        return torch.empty(nodes, len(self.taps), self.hidden_size, dtype=self.dtype, device=self.device.where)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around a pass and the draft before it: an error leaves the stream at the beginning of a pass.

        Raises UnderstudyError where the device ran out of memory, and where it is lost: then, and at every later pass."""
        if self._lost is not None:
            raise self._lost
        try:
            with self.device.at_work():
                yield
        except BaseException as error:
            if isinstance(error, LaneLost) or self.device.lost(error):
                self._lost = error if isinstance(error, LaneLost) else UnderstudyError(lost_line(self.device.name, error))
                self._score = None
                give_back(self, error)
                raise self._lost from None
            self.supply.abandon()
            if what := self.device.out_of_memory(error):
                raise UnderstudyError(out_of_memory_line(what)) from None
            raise

    @property
    def lost(self) -> bool:
        """Can nothing be computed any more, until the model is loaded again?"""
        return self._lost is not None

    @property
    def rings(self) -> list[Ring]:
        """The stream of each device that has one."""
        return [ring for ring in (self.ring, *(lane.ring for lane in self.lanes)) if ring is not None]

    def _waited(self) -> float:
        """Seconds for which the device that waited longest has waited: they wait side by side."""
        return max((ring.stats.wait_seconds for ring in self.rings), default=0.0)

    def close_lanes(self) -> None:
        """Give back what further devices hold."""
        for lane in self.lanes:
            lane.close()
        if self.stages is not None:
            self.stages.close()

    def say(self, note: str) -> None:
        """Warn the user and add the note to the plan, which is the one that `LLM.plan` and all figures show."""
        self.plan = self.plan.noted(note)
        warnings.warn(note, RuntimeWarning, stacklevel=2)

    @property
    def groups(self) -> int:
        """Groups of texts that may be under way at the same time: as many as the plan has memory for, each with nodes of its own.
        One where a pass on a device goes tile by tile: when all tiles are done where they are is not known there."""
        by_tiles = self.device.own_memory and not self.target.whole
        return 1 if by_tiles else max(min(self.plan.groups, self.tree_nodes // self.cost.unit), 1)

    @property
    def tree_nodes(self) -> int:
        """The most nodes that the trees of all sequences may have together in one pass."""
        return self.tile * self.plan.passes.trees

    def filling(self) -> bool:
        """Is a link still busy filling its ring, so that drafting on costs nothing?"""
        return any(not ring.full for ring in self.rings)

    def close(self) -> None:
        """Give back threads and files. Further calls do nothing."""
        if self.companion is not None:
            self.companion.close()
        self.close_lanes()
        self.lookup.close()
        self.cache.close()
        self.device.close()
        if self.ring is not None:
            self.ring.close()


def _cache(
    shape: ModelShape, plan: Plan, dtype: torch.dtype, device: Device, places: Sequence[str], spill: Spill | None
) -> Cache:
    """The cache of the rows and the context of `plan`. `places`: the memory that each layer's state lies in."""
    capacity = columns_of(plan.context, plan.scratch)
    common = shape.layers, plan.rows, capacity, cache_dtype(dtype)
    if plan.padded_rows:
        return PaddedCache(*common, device.where, scratch=min(plan.row_nodes, plan.scratch))
    scratch = plan.record_nodes if any(layer.recurrent for layer in shape.layers) else plan.scratch
    return Cache(*common, places, scratch=scratch, fold=device.fold, spill=spill)
