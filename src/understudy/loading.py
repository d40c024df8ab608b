"""From a Store or a checkpoint to a model ready to run: plan, load."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .devices import Device, open_device
from .drafters import DEFAULT_METHOD
from .errors import UsageError
from .generation_config import GenerationDefaults, defaults_of
from .generation_config import locate as locate_generation_config
from .models import structure
from .models.compile_kernels import compile_kernels
from .models.configuration import config_of, stop_ids, tokenizer_of
from .models.footprint import WeightSizes, footprint_of, on_device, sizes_of_checkpoint, sizes_of_store
from .models.model import SCRATCH, Model
from .models.shape import ModelShape
from .models.streamed import attention_name
from .models.target import TILE
from .options import AUTO, DTYPES, Options
from .plan import widths
from .plan.codec import faster
from .plan.demand import MIB, Footprint, PlanRequest
from .plan.machine import Machine, memory_limit, resident_bytes
from .plan.memory import make_plan
from .plan.placement import Plan
from .plan.residents import LEVELS, LinkSpeeds
from .plan.sizes import format_size, parse_size
from .sources import Report, choose_codec, layout_of, locate, prepare_source, stored_at
from .tiers import ReadSettings
from .weights.checkpoint import Checkpoint, TensorInfo
from .weights.layout import ModelLayout
from .weights.store import Store

CONTEXTS = (4096, 2048, 1024, 512)
EXPECTED_GROWTH = 70 * MIB  # till weights are read, of a process that prepares and compiles nothing; part of RUNTIME


@dataclass(frozen=True)
class Loaded:
    store: Store
    machine: Machine
    tokenizer: Any
    model: Model
    stop_ids: frozenset[int]
    generation: GenerationDefaults


def plan_for(model: str | Path | None, options: Options) -> Plan:
    """Where every byte would go. A checkpoint that is not prepared yet is not prepared for this: its sizes are foretold."""
    source = locate(model, options)
    if isinstance(source, Checkpoint):
        layout = layout_of(source)
        options = choose_codec(source, layout, options)
        if (path := stored_at(source, options)).is_dir():
            source = Store.open(path)
    config, device = config_of(source.path), open_device(options.device)
    second = _second(options, source.path, None)
    if isinstance(source, Store):
        machine, dtype = _measured(source, options), _dtype(source, options)
        sizes = sizes_of_store(source, options.holds_substitute)
        return _plan(sizes, dtype, config, options, machine, second, device)
    machine = Machine.inspect().measured(source.info(layout.linears[0].weight).file, options.cache)
    plan = _foretold(source.tensors, layout, config, options, machine, second, device)
    return plan.noted("not prepared yet: sizes are foretold, and the link is the checkpoint's")


def plan_for_config(place: str | Path, options: Options) -> Plan:
    """Where every byte would go for a model of which there is a config.json alone (its directory, or the file itself)."""
    directory = path.parent if (path := Path(place).expanduser()).name == "config.json" else path
    if not (directory / "config.json").is_file():
        raise UsageError(f"There is no {directory / 'config.json'}: --config takes the directory of one.")
    if options.drafter.second_model is not None:
        name = options.method.partition(":")[0]
        raise UsageError(f"--method {name} compares tokenizers, and --config has none: give MODEL instead.")
    config = config_of(directory)
    dtype = getattr(config, "dtype", None) or DTYPES.get(options.dtype)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"{directory / 'config.json'} does not say the weights' type: give it with --dtype.")
    model = structure.skeleton(config, dtype, attention_name())
    tensors = structure.foretold(model, dtype, directory)
    layout, device = structure.layout(model, tensors), open_device(options.device)
    if options.codec == AUTO:
        options = replace(options, codec=faster(0.0, dtype, options.recipe_quantizer, device))
    plan = _foretold(tensors, layout, config, options, Machine.inspect(), None, device)
    return plan.noted("from the config alone: sizes are foretold, and there is no link to measure")


def _foretold(
    tensors: Mapping[str, TensorInfo], layout: ModelLayout, config: Any, options: Options, machine: Machine,
    second: Store | None, device: Device,
) -> Plan:  # fmt: skip
    dtype = DTYPES.get(options.dtype) or tensors[layout.linears[0].weight].dtype
    sizes = sizes_of_checkpoint(tensors, layout, options.recipe, options.holds_substitute)
    return _plan(sizes, dtype, config, options, machine, second, device)


def _measured(store: Store, options: Options) -> Machine:
    """The machine with the speed of the disk under this Store."""
    return Machine.inspect().measured(store.streamed, options.cache)


def _dtype(store: Store, options: Options) -> torch.dtype:
    return DTYPES.get(options.dtype) or next(iter(store.linears.values())).dtype


def _plan(
    sizes: WeightSizes, dtype: torch.dtype, config: Any, options: Options, machine: Machine, second: Store | None,
    device: Device, grown: int = 0,
) -> Plan:  # fmt: skip
    """The plan for what was asked; where the context was left open, the longest of a few that fits."""
    shape = ModelShape.of(config)
    wants = replace(footprint_of(sizes, shape, dtype, machine.cores), grown_bytes=grown)
    if options.holds_substitute and not device.drafts_see_text:
        wants = on_device(wants, shape, dtype, device)
    budget = device.budget(options.memory, machine)
    longest = shape.positions or CONTEXTS[0]
    if options.context is not None and options.context > longest:
        raise UsageError(f"--context {options.context} is more than this model's {longest} positions.")
    contexts = [options.context] if options.context else [min(c, longest) for c in CONTEXTS]
    for context in contexts[:-1]:
        with suppress(UsageError):
            return _place(wants, budget, context, options, machine, second, device)
    return _place(wants, budget, contexts[-1], options, machine, second, device)


def _place(
    wants: Footprint, budget: int, context: int, options: Options, machine: Machine, second: Store | None,
    device: Device,
) -> Plan:  # fmt: skip
    rows = options.rows or max(1, min(8, int(budget * 0.04) // max(wants.kv_bytes_per_token * (context + SCRATCH), 1)))
    drafter = options.drafter
    level = 0 if device.drafts_see_text else widths.widest(drafter.level_width, drafter.forced, rows)
    companion = 0
    if second is not None:
        dtype, shape = _dtype(second, replace(options, dtype="auto")), ModelShape.of(config_of(second.path))
        own = footprint_of(sizes_of_store(second, True), shape, dtype)
        own = own if device.drafts_see_text else on_device(own, shape, dtype, device)
        companion = own.alone(rows, context + SCRATCH, level)
    disk = options.throttle or (machine.link_bandwidth if machine.disk else 0.0)
    link, memory = device.link_bytes_per_second(disk), device.memory_bytes_per_second(machine)
    speeds = LinkSpeeds(link, memory, LEVELS if options.holds_substitute else 0)
    request = PlanRequest(
        budget_bytes=budget,
        rows=rows,
        context=context,
        scratch=SCRATCH,
        resident=options.resident,
        tile=TILE,
        runtime_bytes=device.runtime_bytes,
        second_model_bytes=companion,
        tree_nodes=drafter.max_nodes,
        widest_level=level,
        speeds=speeds,
    )
    plan = replace(make_plan(wants, request), method=options.method)
    return device.behind(plan, options.host_memory, machine, disk)


def load(model: str | Path | None, options: Options, report: Report | None) -> Loaded:
    """Everything up to the first token. The Store is prepared first where there is none."""
    # imports transformers' model code, which RUNTIME counts, before memory is measured
    attention_name()
    before, device = resident_bytes(), open_device(options.device)
    source = locate(model, options)
    # All that may be wrong with a model's small files comes before preparing it, which may take minutes.
    tokenizer, config = tokenizer_of(source.path), config_of(source.path)
    generation = defaults_of(options.generation_config, source.path)
    file = locate_generation_config(options.generation_config, source.path)
    ends, notes = stop_ids(file, config, tokenizer, config.vocab_size)
    store = prepare_source(source, options, report)
    machine = _measured(store, options)
    second = _second(options, store.path, report)
    sizes, dtype = sizes_of_store(store, options.holds_substitute), _dtype(store, options)
    plan = _plan(sizes, dtype, config, options, machine, second, device)
    if not device.own_memory:
        compile_kernels(store, config, dtype, options.holds_substitute, report)
        if (grown := resident_bytes() - before - EXPECTED_GROWTH - plan.items["tokenizer"]) > 0:
            plan = _plan(sizes, dtype, config, options, machine, second, device, grown)
    try:
        bound = _bind(store, config, plan, options, machine, report, device)
    except (RuntimeError, MemoryError) as error:
        said = device.out_of_memory(error)
        if not said:
            raise
    else:
        said = ""
    if said:  # outside of the handler, which holds what was loaded so far
        plan, options = _again(said, sizes, dtype, config, options, machine, second, device)
        if report is not None:
            report(plan.notes[-1], 0, 0)
        bound = _bind(store, config, plan, options, machine, report, device)
    if second is not None:
        alone = replace(plan, residents=frozenset(), whole=frozenset(), ring_bytes=0)
        bound.companion = _bind(
            second, config_of(second.path), alone, replace(options, dtype="auto", method=DEFAULT_METHOD), machine, report, device
        )
    return Loaded(store, machine, tokenizer, bound, ends, replace(generation, notes=tuple(notes)))


def _again(
    said: str, sizes: WeightSizes, dtype: torch.dtype, config: Any, options: Options, machine: Machine, second: Store | None,
    device: Device,
) -> tuple[Plan, Options]:  # fmt: skip
    """A plan for what is free now: somebody else took memory of the device after the first one was made."""
    gc.collect()
    device.forget()
    machine = replace(machine, memory_limit=memory_limit())
    left = device.budget(None, machine)
    memory = left if options.memory is None else min(parse_size(options.memory), left)
    options = replace(options, memory=memory)
    plan = _plan(sizes, dtype, config, options, machine, second, device)
    note = f"{device.name} had less memory than planned ({said}): planned anew for {format_size(memory)}"
    return plan.noted(note), options


def _bind(
    store: Store, config: Any, plan: Plan, options: Options, machine: Machine, report: Report | None, device: Device
) -> Model:
    assert machine.disk is not None
    settings = ReadSettings(machine.disk.block, machine.disk.threads, options.throttle)
    dtype = _dtype(store, options)
    return Model(store, config, plan, settings, dtype, options.holds_substitute, device, report)


def _second(options: Options, first: Path, report: Report | None) -> Store | None:
    """The Store of the second model that the drafter needs, held whole; None: it needs none.

    Raises UsageError if its tokens are not those of the model in `first`."""
    model = options.drafter.second_model
    if model is None:
        return None
    if not model:
        name = options.method.partition(":")[0]
        raise UsageError(f"{name} needs the model that drafts: --method {name}:MODEL.")
    whole = options.held_whole()
    store = prepare_source(locate(model, whole), whole, report)
    if tokenizer_of(store.path).get_vocab() != tokenizer_of(first).get_vocab():
        raise UsageError(
            f"{model} cannot draft for this model: their tokenizers differ. --method {DEFAULT_METHOD} needs no second model."
        )
    return store
