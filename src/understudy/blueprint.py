"""All that planning depends on, in one value: the model, the machine it runs on, and what the user chose.

It is known before any weight is read, so `understudy plan` and loading make the same plan from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from .devices import Device
from .devices.several import Behind, hop_between, links_together, plan_over
from .drafters.trained import HeadMemory, head_memory
from .errors import UsageError
from .heads.source import Bearer
from .layer_states import SCRATCH
from .models.footprint import WeightSizes, footprint_of, on_device, sizes_of_store
from .models.stock.shape import ModelShape, compute_dtype, keeps_states, notes_on
from .models.stream.exact_linear import decoding_bytes
from .models.stream.hauls import MOST_BYTES
from .models.target import TILE
from .options import AUTO, DTYPES, SMALL, Options
from .plan import widths
from .plan.demand import Footprint, PlanRequest, Spilling
from .plan.grammars import grammar_bytes
from .plan.machine import Machine
from .plan.memory import TREE_TILES, make_plan, roomier, smallest_budget, tree_tiles
from .plan.placement import STAGES, Plan
from .plan.residents import LEVELS, LinkSpeeds
from .plan.sizes import format_size, parse_size
from .plan.splits import Hop
from .policies import rows_together
from .prefixes import BLOCK, memory_for
from .recurrent import DEEPEST
from .spilled import LATEST, STEP, fast_slots
from .weights.store import Store

# Contexts that are tried, in this order, where the user chose none.
CONTEXTS = (4096, 2048, 1024, 512)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a plan is made from."""

    # The model's transformers config.
    config: Any
    # The bytes of its weights in memory: of its Store, or foretold.
    sizes: WeightSizes
    # The type it computes in.
    dtype: torch.dtype
    # Measured with the disk that its weights are on, where there is one.
    machine: Machine
    device: Device
    options: Options
    # The prepared weights; None where they are only foretold.
    store: Store | None = None
    # The second model, where one drafts.
    second: Blueprint | None = None
    # Further devices, which exact weights are dealt out to.
    further: tuple[Device, ...] = ()
    # Bytes that each device may use at most, the first in front; empty: what is free there.
    ceilings: tuple[int, ...] = ()
    # The model as a trained head is checked against it; None: no head drafts.
    bearer: Bearer | None = None

    @classmethod
    def of_store(cls, store: Store, config: Any, options: Options, machine: Machine, device: Device) -> Blueprint:
        """The blueprint of a model that is prepared."""
        return cls(
            config=config, machine=machine, device=device, options=options, store=store,
            sizes=sizes_of_store(store, options.holds_substitute, options.holds_head),
            dtype=compute_dtype(DTYPES.get(options.dtype), store.dtype, device.own_memory),
            bearer=Bearer.of_store(store, config),
        )  # fmt: skip

    @cached_property
    def shape(self) -> ModelShape:
        """The model's sizes, read off its config. Raises UsageError for keys and values of 8 bits, and for heads that choose the
        tokens that they look at, where there are none."""
        if self.options.small_keys and self.device.own_memory:
            raise UsageError(f"--kv-bits {SMALL} is for the processor, not for {self.device.name}: leave it out.")
        return ModelShape.of(self.config, small=self.options.small_keys, latent=keeps_states(self.devices)).for_device(self.device)

    @property
    def copy(self) -> str:
        """The quantisers of the copy, in words: of its Store, or of the one that options would make."""
        return (self.store or self.options).recipe.copy

    @cached_property
    def footprint(self) -> Footprint:
        """What the model takes in memory. Raises UsageError for a mixture of experts on several devices."""
        if self.further and any(linear.share < 1 for linear in self.sizes.linears):
            raise UsageError("A mixture of experts runs on one device so far: leave --devices out.")
        footprint = footprint_of(self.sizes, self.shape, self.dtype, self.machine.cores, len(self.options.handed_out))
        together = MOST_BYTES if self.device.own_memory else 0
        room = decoding_bytes(footprint.decoding_bytes, self.device)
        footprint = replace(footprint, decoding_bytes=room, together_bytes=together)
        if self.options.holds_substitute and not self.device.drafts_see_text:
            return on_device(footprint, self.sizes, self.shape, self.dtype, self.device)
        return footprint

    @cached_property
    def speeds(self) -> LinkSpeeds:
        """How fast weights come and are read, measured once."""
        return LinkSpeeds(
            link_bytes_per_second=self.links[0],
            memory_bytes_per_second=self.device.memory_bytes_per_second(self.machine),
            draft_levels=LEVELS if self.options.holds_substitute else 0,
        )

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, the first in front."""
        return (self.device, *self.further)

    @cached_property
    def links(self) -> list[float]:
        """Bytes per second at which streamed weights come to each device, while they come to all; measured once."""
        return links_together(self.devices, self.disk) if self.further else [self.device.link_bytes_per_second(self.disk)]

    @property
    def disk(self) -> float:
        """Bytes per second from the disk; 0: not known."""
        return self.options.throttle or (self.machine.link_bandwidth if self.machine.disk else 0.0)

    @property
    def budget(self) -> int:
        """Bytes of fast memory that may be used now. Raises UsageError where the user wants more than there is."""
        return self._budget(0)

    def _budget(self, place: int) -> int:
        """The budget of device number `place`. What --memory says is each accelerator's, and the process's: processors share it."""
        most = self.devices[place].budget(self.options.memory, self.machine)
        if not self.device.own_memory:
            most //= len(self.devices)
        return min(most, self.ceilings[place]) if self.ceilings else most

    def plan(self, grown: int = 0) -> Plan:
        """The plan for the context that was asked for, or the longest of CONTEXTS that fits.

        `grown`: bytes that this process holds beyond a fresh one. Raises UsageError where nothing fits."""
        contexts = self.contexts()
        for context in contexts[:-1]:
            with suppress(UsageError):
                return self.for_context(context, grown)
        return self.for_context(contexts[-1], grown)

    @property
    def least_bytes(self) -> int:
        """The smallest budget for one sequence (or as many as were asked for) of the shortest context that may be planned."""
        return self.least_for(self.contexts()[-1])

    def least_for(self, context: int) -> int:
        """The smallest budget for one sequence (or as many as were asked for) of `context` tokens."""
        return smallest_budget(self.footprint, self._smallest(context))

    def _smallest(self, context: int) -> PlanRequest:
        """What is requested where memory is shortest: one sequence (or as many as were asked for), whose keys and values spill if
        they may and that takes less."""
        stays = self.request(context, self.options.rows or 1)
        if self.options.spill != AUTO or self.options.context is None or not self.can_spill:
            return stays
        spills = replace(stays, spilling=Spilling(LATEST, fast_slots(LATEST)))
        return min((stays, spills), key=lambda one: smallest_budget(self.footprint, one))

    @property
    def can_spill(self) -> bool:
        """May keys and values of this model spill on this device?"""
        apart = self.further or rows_together(self.options.batching, 1)
        return self.footprint.spill is not None and self.device.spilled_attention() is not None and not apart

    def _spilling(self) -> Spilling | None:
        """How keys and values spill by what was asked for. Raises UsageError where they cannot."""
        tokens = self.options.spill
        if isinstance(tokens, int) and not self.can_spill:
            why = "it takes one processor, and layers that see the whole text with heads of a multiple of 16 bytes"
            raise UsageError(f"--spill {tokens}: keys and values cannot spill here, {why}: leave it out.")
        return Spilling(tokens, fast_slots(tokens)) if isinstance(tokens, int) else None

    def contexts(self) -> list[int]:
        """The contexts that may be planned, longest first. Raises UsageError for one that the model does not have."""
        longest = self.shape.positions or CONTEXTS[0]
        asked = self.options.context
        if asked is not None and asked > longest:
            raise UsageError(f"--context {asked} is more than this model's {longest} positions.")
        return [asked] if asked else [min(context, longest) for context in CONTEXTS]

    def for_context(self, context: int, grown: int = 0) -> Plan:
        """The plan for `context` tokens a sequence. Raises UsageError, naming what would work, where it does not fit."""
        footprint = replace(self.footprint, grown_bytes=grown)
        least = smallest_budget(footprint, smallest := self._smallest(context))
        # The first that fits: as many sequences as suit the budget, few, and few that spill.
        requests = (self.request(context), self.request(context, self.options.rows or 1), smallest)
        request = next((one for one in requests if smallest_budget(footprint, one) <= one.budget_bytes), smallest)
        if request.spilling is not None and self.options.spill == AUTO:
            request = roomier(footprint, request, [Spilling(most, fast_slots(most)) for most in range(LATEST, context, STEP)])
        said: dict[str, Any] = {"method": self.options.method, "copy": self.copy}
        notes = notes_on(self.config, context, self.dtype)
        if self.further:
            plan = replace(self._over_devices(footprint, request), **said).noted(*notes)
            return plan if plan.split == STAGES else replace(plan, least_bytes=least)
        plan = replace(make_plan(footprint, request), least_bytes=least, **said)
        plan = self.device.behind(plan, self.options.host_memory, self.machine, self.disk)
        return plan.noted(*notes, self.machine.unused_gpu if self.options.device == AUTO else "")

    def _over_devices(self, footprint: Footprint, request: PlanRequest) -> Plan:
        """The plan over all devices."""
        budgets = [self._budget(place) for place in range(len(self.devices))]
        behind = Behind(self.options.host_memory, self.machine, self.disk)
        return plan_over(self.devices, budgets, self.links, self.hop, self.options.split, footprint, request, behind)

    @cached_property
    def hop(self) -> Hop:
        """From one device to another, measured once."""
        memory = self.speeds.memory_bytes_per_second
        return hop_between(self.devices, memory if self.device.own_memory else memory / len(self.devices))

    def request(self, context: int, rows: int | None = None) -> PlanRequest:
        """What a plan for `rows` sequences of `context` tokens must hold. None: as many as were asked for, or suit the budget."""
        budget = self.budget
        slots = context + SCRATCH
        nodes = self._record_nodes()
        rows = rows or self.options.rows or self.footprint.rows_in(budget, slots, nodes)
        drafter = self.options.drafter
        on_host = self.device.drafts_see_text
        widest_level = 0 if on_host else widths.widest(drafter.level_width, drafter.forced, rows)
        padded = self._padded_rows(rows, slots)
        second = self.second.footprint.alone(rows, slots, widest_level, nodes) if self.second is not None else 0
        head = self._head_memory(rows, slots)
        return PlanRequest(
            budget_bytes=budget,
            rows=rows,
            context=context,
            scratch=SCRATCH,
            resident=self.options.resident,
            tile=TILE,
            runtime_bytes=self.device.runtime_bytes,
            second_model_bytes=second,
            head_bytes=head.held,
            head_unread_bytes=head.unread,
            prefix_bytes=memory_for(self.footprint.prefix_file_bytes(BLOCK)) if self.options.prefix_cache is not None else 0,
            grammar_bytes=grammar_bytes(self.shape.vocabulary, rows) if self.options.grammars else 0,
            tree_nodes=drafter.max_nodes,
            tree_tiles=tree_tiles(rows, self.device.nodes_are_free),
            record_nodes=nodes,
            padded_rows=padded,
            aligning_bytes=padded * context * self.shape.widest_line(self.dtype),
            widest_level=widest_level,
            apart=drafter.apart,
            layers=len(self.shape.layers),
            all_experts=self.device.own_memory,
            spilling=self._spilling(),
            kv_bits=SMALL if self.options.small_keys else 0,
            speeds=self.speeds,
        )

    def _head_memory(self, rows: int, slots: int) -> HeadMemory:
        """Bytes of the trained head that drafts or suggests, and of all that it keeps of `rows` texts."""
        head = self.options.drafter.head
        if head is None or self.bearer is None:
            return HeadMemory()
        return head_memory(head.source(self.bearer).config, rows, slots, self.dtype, head.bits)

    def _record_nodes(self) -> int:
        """Nodes of a tree that recurrent layers must have room for. Raises UsageError for trees that would be too deep for them."""
        drafter = self.options.drafter
        models = (self, self.second) if self.second is not None else (self,)
        if any(model.shape.recurs for model in models) and drafter.deepest > DEEPEST:
            deep = f"drafts {drafter.deepest} levels, and recurrent layers take back {DEEPEST} at most"
            raise UsageError(f"--method {self.options.method} {deep}: choose fewer.")
        return min(max(drafter.max_nodes or TREE_TILES * TILE, DEEPEST), SCRATCH)

    def _padded_rows(self, rows: int, slots: int) -> int:
        """Rows that a pass verifies in a left-padded rectangle; 0: each has a length of its own.

        Raises UsageError where the model, or the device, has no such rows."""
        policy = self.options.policy
        padded = rows_together(self.options.batching, rows)
        if padded and not self.shape.holds_whole(-(-slots // 64) * 64):
            why = "and this model has layers that recur, slide or compress keys"
            raise UsageError(f"The policy {policy} pads rows on the left, {why}: choose ragged.")
        if padded and self.device.own_memory:
            raise UsageError(f"The policy {policy} is for the processor, not for {self.device.name}: choose ragged.")
        return padded

    def replanned(self, free: Sequence[int], reason: str) -> Plan:
        """A plan for at most `free` bytes of each device, with a note that says why. UsageError where nothing fits any more."""
        asked = self.options.memory
        most = None if asked is None else parse_size(asked) // (1 if self.device.own_memory else len(self.devices))
        rooms = tuple(room if most is None else min(room, most) for room in free)
        short = [place for place, room in enumerate(rooms) if most is None or room < most] or [0]
        plan = replace(self, options=replace(self.options, memory=None), ceilings=rooms).plan()
        names = " and ".join(self.devices[place].name for place in short)
        sizes = " and ".join(format_size(rooms[place]) for place in short)
        return plan.noted(f"{names} had less memory than planned ({reason}): planned anew for {sizes}")
