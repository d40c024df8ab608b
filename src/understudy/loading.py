"""From a name to a model ready to run: locate, prepare, blueprint, plan, bind."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import startup
from .blueprint import Blueprint
from .devices import DEFAULT, Device, open_device
from .errors import UsageError
from .generation_config import GenerationDefaults, defaults_of
from .generation_config import locate as locate_generation_config
from .models.compile_kernels import compile_kernels, give_back
from .models.model import Model, Uses
from .models.stock.configuration import stop_ids, tokenizer_of
from .models.stock.wrapper import readable, text_config
from .models.streamed import attention_name
from .options import AUTO, Options
from .plan.demand import EXPECTED_GROWTH, REST
from .plan.machine import Machine, memory_limit, resident_bytes
from .plan.placement import Plan
from .planning import MemoryCeiling, check_drafter, measured, planned_devices, with_second
from .small_keys import NOT_EXACT
from .sources import Report, compiling_for, locate, prepare_source, proven_config
from .tiers import ReadSettings
from .weights.checkpoint import Checkpoint
from .weights.holding import Hold
from .weights.layout import ModelLayout
from .weights.store import Store


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and all that requests need beside it."""

    store: Store
    machine: Machine
    tokenizer: Any
    model: Model
    # Tokens that end a text.
    stop_ids: frozenset[int]
    # What the model's generation_config.json says.
    generation: GenerationDefaults
    # Keeps the files from being deleted meanwhile.
    hold: Hold

    @property
    def readable(self) -> int:
        """How many of the model's tokens, from the first on, may be part of a text."""
        return readable(self.model.config)


@dataclass(frozen=True)
class SmallFiles:
    """What a model's small files say. They are read before anything is prepared, which may take minutes."""

    config: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    generation: GenerationDefaults

    @classmethod
    def of(cls, directory: Path, options: Options) -> SmallFiles:
        """Raises CheckpointError for files that cannot be used."""
        config = proven_config(directory, options)
        vocabulary = text_config(config).vocab_size
        tokenizer = tokenizer_of(directory, vocabulary)
        # Before kernels take room in between: what a tokenizer is read from is several times as large as it is.
        give_back()
        generation = defaults_of(options.generation_config, directory)
        file = locate_generation_config(options.generation_config, directory)
        ends, notes = stop_ids(file, config, tokenizer, vocabulary)
        return cls(config, tokenizer, ends, replace(generation, notes=tuple(notes)))


def _small_files(source: Store | Checkpoint, options: Options, device: Device, report: Report | None) -> SmallFiles:
    """What the small files of `source` say; kernels are compiled while its kind is proven."""
    if isinstance(source, Store):
        return SmallFiles.of(source.path, options)
    with compiling_for(source, options, device) as others:
        files = SmallFiles.of(source.path, options)
        others.wait(report)
    return files


@dataclass(frozen=True)
class Choosing(MemoryCeiling):
    """What a run here would choose, for those who only prepare: they are refused nothing, and take what is there."""

    def suited(self, config: Any, layout: ModelLayout, options: Options) -> Options:
        try:
            return super().suited(config, layout, options)
        except UsageError:
            # No run has these options; what is prepared serves others.
            return options.smallest

    def holds(self, store: Store, config: Any, options: Options) -> bool:
        return True

    def check(self, config: Any, layout: ModelLayout, options: Options) -> None:
        """Who runs the model may have more."""

    def check_preparing(self, layout: ModelLayout) -> None:
        """It is tried."""


def prepare_here(model: str | Path | None, options: Options, report: Report | None) -> Store:
    """The Store of `model`, made now if it is not there yet, with the bits that a run here would choose where they are open."""
    source = locate(model, options)
    left_open = options.bits_left_open or options.head_left_open
    # For others nothing is chosen, and they may be on another machine.
    here = options.devices is None and options.device in (AUTO, DEFAULT)
    if isinstance(source, Store) or not (left_open and here):
        return prepare_source(source, options, report)
    device = open_device(options.device, options.host_memory)
    return prepare_source(source, options, report, device, Choosing(source, device))


def load(model: str | Path | None, options: Options, report: Report | None) -> Loaded:
    """Everything up to the first token. The Store is prepared first where there is none."""
    # Imports transformers' model code, which RUNTIME counts, before memory is measured.
    attention_name()
    before = resident_bytes()
    device, *further = planned_devices(options, None)
    source = locate(model, options)
    # Held from now on, so that nobody deletes what is read, nor what is made of it.
    hold = Hold()
    hold.add(source.path)
    files = _small_files(source, options, device, report)

    check_drafter(source, files.config, options)
    ceiling = MemoryCeiling(source, device) if isinstance(source, Checkpoint) else None
    store = prepare_source(source, options, report, device, ceiling)
    hold.add(store.path)
    blueprint = Blueprint.of_store(store, files.config, options, measured(store, options), device)
    blueprint = replace(with_second(blueprint, store.path, report), further=tuple(further))
    plan = blueprint.plan()
    if not device.own_memory:
        copies = options.holds_substitute or options.holds_head
        compile_kernels(store, files.config, blueprint.dtype, copies, report, spills=plan.spill_latest > 0, small=plan.kv_bits > 0)
        if grown := _grown(before, plan):
            plan = blueprint.plan(grown)
    if plan.kv_bits and report is not None:
        report(NOT_EXACT, 0, 0)
    bound = bind_as_planned(blueprint, plan, report)
    if blueprint.second is not None and blueprint.second.store is not None:
        hold.add(blueprint.second.store.path)
        alone = replace(bound.plan, residents=frozenset(), whole=frozenset(), decoded=frozenset(), ring_bytes=0)
        alone = replace(alone, padded_rows=0, spill_latest=0, kv_bits=0, parts=None, lanes=(), linears=None, split="", stage=(0, 0))
        bound.companion = bind(blueprint.second, alone, report)
    return Loaded(store, blueprint.machine, files.tokenizer, bound, files.stop_ids, files.generation, hold)


def _grown(before: int, plan: Plan) -> int:
    """Bytes that this process holds beyond what `plan` counts, now that kernels are there; below 0: it holds less.

    before: what it held when it had imported all that it needs. What an earlier model left is used again, and what a program of
    somebody else's holds less is its own."""
    now = resident_bytes() - plan.items["tokenizer"]
    more = max(now - before - EXPECTED_GROWTH, 0)
    return min(now + REST - plan.items["runtime"], more) if startup.owned() else more


def bind_as_planned(blueprint: Blueprint, plan: Plan, report: Report | None) -> Model:
    """The model under `plan`, or under a new plan where the device has less memory by now: others may use it too."""
    device = blueprint.device
    try:
        return bind(blueprint, plan, report)
    except (RuntimeError, MemoryError) as error:
        reason = device.out_of_memory(error)
        if not reason:
            raise
    # Outside of the handler, which holds what was loaded so far.
    gc.collect()
    for one in blueprint.devices:
        one.forget()
    now = replace(blueprint.machine, memory_limit=memory_limit())
    plan = blueprint.replanned([one.budget(None, now) for one in blueprint.devices], reason)
    if report is not None:
        report(plan.notes[-1], 0, 0)
    return bind(blueprint, plan, report)


def bind(blueprint: Blueprint, plan: Plan, report: Report | None) -> Model:
    """The stock model, bound to its Store under `plan`."""
    store, machine, options = blueprint.store, blueprint.machine, blueprint.options
    assert store is not None and machine.disk is not None, "only a prepared model can be loaded"
    return Model(
        store=store,
        config=blueprint.config,
        plan=plan,
        settings=ReadSettings(machine.disk.block, machine.disk.threads, options.throttle, options.tier),
        dtype=blueprint.dtype,
        uses=Uses(options.holds_substitute, options.holds_head, options.handed_out),
        devices=blueprint.devices,
        report=report,
        directory=options.cache,
    )
