"""From a name to a model ready to run: locate, prepare, blueprint, plan, bind. `plan_for` loads nothing."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .blueprint import Blueprint
from .devices import Device, open_device
from .devices.codec_speed import fastest_codec
from .devices.elsewhere import device_of
from .drafters import DEFAULT_METHOD
from .errors import UsageError
from .generation_config import GenerationDefaults, defaults_of
from .generation_config import locate as locate_generation_config
from .models import structure
from .models.compile_kernels import compile_kernels
from .models.configuration import stop_ids, tokenizer_of
from .models.footprint import sizes_of_checkpoint
from .models.model import Model
from .models.streamed import attention_name
from .models.wrapper import text_config
from .options import AUTO, DTYPES, Options
from .plan.demand import MIB
from .plan.machine import Machine, memory_limit, resident_bytes
from .plan.other_machine import OtherMachine
from .plan.placement import Plan
from .sources import Report, choose_codec, layout_of, locate, prepare_source, proven_config, stored_at
from .tiers import ReadSettings
from .weights.checkpoint import Checkpoint
from .weights.store import Store

# What a process that prepares and compiles nothing grows by until weights are read. RUNTIME counts it already.
EXPECTED_GROWTH = 70 * MIB


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
        generation = defaults_of(options.generation_config, directory)
        file = locate_generation_config(options.generation_config, directory)
        ends, notes = stop_ids(file, config, tokenizer, vocabulary)
        return cls(config, tokenizer, ends, replace(generation, notes=tuple(notes)))


def plan_for(model: str | Path | None, options: Options, other: OtherMachine | None = None) -> Plan:
    """Where every byte would go, here or on the `other` machine. A checkpoint is not prepared for this: its sizes are foretold."""
    device = planned_device(options, other)
    source = locate(model, options)
    config = proven_config(source.path, options)
    if isinstance(source, Checkpoint):
        layout = layout_of(source)
        if other is None:
            options = choose_codec(source, layout, options, device)
        else:
            options = chosen_elsewhere(options, other, source.info(layout.linears[0].weight).dtype, device)
        if (path := stored_at(source, options)).is_dir():
            source = Store.open(path)
    if isinstance(source, Store):
        machine = measured(source, options) if other is None else other.machine()
        blueprint = Blueprint.of_store(source, config, options, machine, device)
        return noted_elsewhere(with_second(blueprint, source.path, None).plan(), other)
    first = source.info(layout.linears[0].weight)
    blueprint = Blueprint(
        config=config,
        sizes=sizes_of_checkpoint(source.tensors, layout, options.recipe, options.holds_substitute),
        dtype=DTYPES.get(options.dtype) or first.dtype,
        machine=Machine.inspect().measured(first.file, options.cache) if other is None else other.machine(),
        device=device,
        options=options,
    )
    plan = with_second(blueprint, source.path, None).plan()
    if other is not None:
        return noted_elsewhere(plan.noted("not prepared yet: sizes are foretold"), other)
    return plan.noted("not prepared yet: sizes are foretold, and the link is the checkpoint's")


def plan_for_config(place: str | Path, options: Options, other: OtherMachine | None = None) -> Plan:
    """Where every byte would go for a config.json without weights, here or on the `other` machine.

    `place`: the directory of the config.json, or the file itself."""
    device = planned_device(options, other)
    directory = path.parent if (path := Path(place).expanduser()).name == "config.json" else path
    if not (directory / "config.json").is_file():
        raise UsageError(f"There is no {directory / 'config.json'}: --config takes the directory of one.")
    if options.revision is not None:
        raise UsageError("--revision is for a model of the hub, and --config names a directory here.")
    if options.drafter.second_model is not None:
        name = options.method_name
        raise UsageError(f"--method {name} compares tokenizers, and --config has none: give MODEL instead.")
    config = proven_config(directory, options)
    dtype = getattr(config, "dtype", None) or getattr(text_config(config), "dtype", None) or DTYPES.get(options.dtype)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise UsageError(f"{directory / 'config.json'} does not say the weights' type: give it with --dtype.")
    model = structure.skeleton(config, dtype, attention_name())
    tensors = structure.foretold(model, dtype, directory)
    layout = structure.layout(model, tensors)
    options = chosen_elsewhere(options, other, dtype, device)
    blueprint = Blueprint(
        config=config,
        sizes=sizes_of_checkpoint(tensors, layout, options.recipe, options.holds_substitute),
        dtype=DTYPES.get(options.dtype) or dtype,
        machine=Machine.inspect() if other is None else other.machine(),
        device=device,
        options=options,
    )
    if other is not None:
        return noted_elsewhere(blueprint.plan().noted("from the config alone: sizes are foretold"), other)
    return blueprint.plan().noted(
        "from the config alone: sizes are foretold, and there is no link to measure (--for describes a machine)"
    )


def planned_device(options: Options, other: OtherMachine | None) -> Device:
    """The device to plan for: one of this machine, or that of the `other` machine. UsageError where --device contradicts it."""
    if other is None:
        return open_device(options.device, options.host_memory)
    if options.device not in (AUTO, other.device):
        raise UsageError(f"--device {options.device} contradicts --for {other.device}: leave one of them out.")
    return device_of(other, options.host_memory)


def chosen_elsewhere(options: Options, other: OtherMachine | None, dtype: torch.dtype, device: Device) -> Options:
    """Options with a codec where it was left open: the fastest one for the link of the `other` machine, or for a usual link."""
    if options.codec != AUTO:
        return options
    link = 0.0 if other is None else float(other.link or other.disk)
    return replace(options, codec=fastest_codec(link, dtype, options.recipe_quantizer, device))


def noted_elsewhere(plan: Plan, other: OtherMachine | None) -> Plan:
    """The plan with what a reader must know where it is for the `other` machine."""
    return plan if other is None else plan.noted(other.note)


def load(model: str | Path | None, options: Options, report: Report | None) -> Loaded:
    """Everything up to the first token. The Store is prepared first where there is none."""
    # Imports transformers' model code, which RUNTIME counts, before memory is measured.
    attention_name()
    before = resident_bytes()
    device = open_device(options.device, options.host_memory)
    source = locate(model, options)
    files = SmallFiles.of(source.path, options)
    store = prepare_source(source, options, report, device)
    blueprint = Blueprint.of_store(store, files.config, options, measured(store, options), device)
    blueprint = with_second(blueprint, store.path, report)
    plan = blueprint.plan()
    if not device.own_memory:
        compile_kernels(store, files.config, blueprint.dtype, options.holds_substitute, report)
        if (grown := resident_bytes() - before - EXPECTED_GROWTH - plan.items["tokenizer"]) > 0:
            plan = blueprint.plan(grown)
    bound = bind_as_planned(blueprint, plan, report)
    if blueprint.second is not None:
        alone = replace(bound.plan, residents=frozenset(), whole=frozenset(), decoded=frozenset(), ring_bytes=0)
        bound.companion = bind(blueprint.second, alone, report)
    return Loaded(store, blueprint.machine, files.tokenizer, bound, files.stop_ids, files.generation)


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
    device.forget()
    now = replace(blueprint.machine, memory_limit=memory_limit())
    plan = blueprint.replanned(device.budget(None, now), reason)
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
        drafts=options.holds_substitute,
        device=blueprint.device,
        report=report,
        taps=options.drafter.taps,
    )


def measured(store: Store, options: Options) -> Machine:
    """The machine with the speed of the disk under this Store."""
    return Machine.inspect().measured(store.streamed, options.cache)


def with_second(blueprint: Blueprint, directory: Path, report: Report | None) -> Blueprint:
    """With the second model that the drafter needs, prepared and held whole; as it is where none is needed.

    Raises UsageError unless its tokens are those of the model in `directory`."""
    model = blueprint.options.drafter.second_model
    if model is None:
        return blueprint
    if not model:
        name = blueprint.options.method_name
        raise UsageError(f"{name} needs the model that drafts: --method {name}:MODEL.")
    options = blueprint.options.held_whole()
    store = prepare_source(locate(model, options), options, report, blueprint.device)
    if tokenizer_of(store.path).get_vocab() != tokenizer_of(directory).get_vocab():
        raise UsageError(
            f"{model} cannot draft for this model: their tokenizers differ."
            f" --method {DEFAULT_METHOD} needs no second model."
        )
    second = Blueprint.of_store(store, proven_config(store.path, options), options, blueprint.machine, blueprint.device)
    return replace(blueprint, second=second)
