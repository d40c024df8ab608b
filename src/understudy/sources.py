"""From the name a user gives to a Store: what it names is found, and prepared once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import demo, startup
from .codecs import codec
from .devices import Device, open_device
from .devices.codec_speed import fastest_codec
from .errors import CheckpointError, UnderstudyError, UsageError
from .models import calibration
from .models.compile_ahead import Compiling, compiling
from .models.mixtures.experts import stacks
from .models.proving.proof import prove
from .models.stock import structure
from .models.stock.configuration import config_of, tokenizer_of
from .models.stock.known import keep, key_of, recall
from .models.stock.ropes import for_context
from .models.stock.shape import compute_dtype
from .models.streamed import attention_name
from .options import AUTO, DTYPES, USUAL, Options
from .plan.machine import Machine, resident_bytes, spare_bytes
from .plan.sizes import format_size, parse_size
from .stores import Ceiling, as_made, left_open, only_chooser, places, prepared, stored_at
from .weights.checkpoint import Checkpoint
from .weights.encoding import form_among, said_stored
from .weights.entries import INDEX
from .weights.formats import other_format, refuse_adapter
from .weights.layout import ModelLayout
from .weights.measuring import Note
from .weights.prepare import estimate, prepare
from .weights.published import dtype_of, in_words, transposed
from .weights.recipe import checksum_of, textless
from .weights.store import Store

# Memory beyond what a process holds from which on preparing may keep what it frees, which took up to 750 MiB more.
PLENTY = 3 << 30
# Called with what is being done, what is done of it, and all there is to do (0: it has no parts).
Report = Callable[[str, float, float], None]


def ending(report: Report | None, ended: threading.Event) -> Report:
    """`report`, by which loading ends with an UnderstudyError once `ended` is set."""

    def told(stage: str, done: float, total: float) -> None:
        if ended.is_set():
            raise UnderstudyError("loading was ended")
        if report is not None:
            report(stage, done, total)

    return told


def locate(model: str | Path | None, options: Options, *, as_it_is: bool = False) -> Store | Checkpoint:
    """The Store or Checkpoint that `model` names; None, and the name `demo`, are the built-in model.

    Raises CheckpointError and StoreError for what cannot be found or read, and UsageError where a Store was made otherwise than
    `options` ask for, unless it may be taken `as_it_is`."""
    if model is not None and not isinstance(model, (str, Path)):
        raise UsageError(f"A model is a name or a path, got {model!r}.")
    if model is None or model == demo.NAME:
        model = demo.path()
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        refuse_adapter(path)
        why = other_format(path) or "it is neither a checkpoint nor a Store"
        raise CheckpointError(f"{path} has no config.json: {why}.")
    if path.is_dir() and options.revision is not None:
        raise UsageError(f"--revision is for a model of the hub, and {path} is a directory here.")
    if (path / "index.json").is_file():
        store = Store.open(path)
        if not as_it_is:
            _check_asked(store, options)
        return store
    return Checkpoint.open(model, offline=options.offline, revision=options.revision)


def _check_asked(store: Store, options: Options) -> None:
    """Raise UsageError where `options` ask for another Store than this one, which is never changed."""
    made = store.recipe
    bits = options.quantizer or options.bits
    head = options.recipe_head or options.recipe_quantizer
    others = {
        f"--bits {bits}": not options.bits_left_open and textless(options.recipe_quantizer) != textless(made.quantizer),
        f"--head-bits {options.head_bits}": options.head_bits != AUTO and head != (made.head or made.quantizer),
        f"--calibrate {options.calibrate}": options.calibrate is not None and checksum_of(options.text) != made.calibrated,
        "--link" if options.link else f"--codec {options.codec}": options.codec not in (AUTO, made.codec),
        f"--output {options.output}": options.output is not None,
    }
    for option, other in others.items():
        if other:
            remedy = "leave it out, or name the checkpoint"
            raise UsageError(f"{option} is for preparing, and {store.path} is prepared already: {remedy}.")


def prepare_source(
    source: Store | Checkpoint,
    options: Options,
    report: Report | None,
    device: Device | None = None,
    ceiling: Ceiling | None = None,
) -> Store:
    """The Store of a checkpoint: made now if it is not there yet, and then found again at the next start.

    device: where the model will run; None: the one that `options` name, opened if a codec is to be chosen for it. ceiling: what
    fits there; None: all does. What its check raises before a Store is made is raised."""
    if isinstance(source, Store):
        return source
    refuse_linked_codes(source.config, options)
    if options.output is not None and Path(options.output).expanduser().resolve().is_relative_to(source.path.resolve()):
        raise UsageError(f"--output {options.output} lies in the checkpoint {source.path}: name a directory beside it.")
    with compiling_for(source, options, device) as others:
        config = proven_config(source.path, options)
        others.wait(report)
    store, _ = prepared(source, config, options, ceiling)
    if store is not None:
        return store

    # Said once, however many are waited for.
    @cache
    def waiting() -> None:
        if report is not None:
            report(f"Waiting for another process, which prepares {source.name}", 0, 0)

    with ExitStack() as choice:
        choice.enter_context(only_chooser(source, options, waiting))
        return _made(source, config, options, report, device, ceiling, choice.close)


def _made(
    source: Checkpoint,
    config: Any,
    options: Options,
    report: Report | None,
    device: Device | None,
    ceiling: Ceiling | None,
    begun: Callable[[], None],
) -> Store:
    """The Store of `source`: found now that no other process makes one, or made. For the others see `prepare_source`; `begun` is
    called as soon as other processes can see which one is made."""
    store, options = prepared(source, config, options, ceiling)
    if store is not None:
        return store
    layout = layout_of(source, options.cache)
    if ceiling is not None:
        # What chooses a codec and prepares takes more memory than a model that is prepared may need.
        if not any(place.is_dir() for place in places(source, options)):
            ceiling.check_preparing(layout)
        options = ceiling.suited(config, layout, options)
    options = choose_codec(source, layout, options, device)
    directory = Path(options.output).expanduser() if options.output else stored_at(source, options)
    if (directory / INDEX).is_file():
        options = as_made(options, Store.open(directory).recipe)
    progress = None if report is None else lambda done, total, name: report("preparing", done, total)
    if not directory.is_dir():
        # Refused now, not after the minutes that preparing takes.
        tokenizer_of(source.path, source.info(layout.embedding).shape[0])
        if ceiling is not None:
            ceiling.check(config, layout, options)
    if report is not None and not directory.is_dir():
        size = format_size(estimate(source, layout, options.recipe))
        report(f"Preparing {source.name} once{_said_copy(options)}: {size} in {directory}", 0, 0)
        if published := said_published(source.config):
            report(published, 0, 0)
        if otherwise := said_stored(source, layout, options.recipe.codec, options.recipe.quantizer):
            report(otherwise, 0, 0)
        if layout.aside:
            report(said_aside(source, layout, options.recipe.codec), 0, 0)
    measure = None if options.text is None else partial(_moments, source, layout, config, options, report)
    with _memory(options):
        return prepare(source, layout, directory, options.recipe, progress=progress, measure=measure, begun=begun)


def compiling_for(source: Checkpoint, options: Options, device: Device | None) -> AbstractContextManager[Compiling]:
    """Compiles what is not on disk of what preparing and running `source` on the processor needs, while its kind is proven."""
    # as far as is known before its layout is
    largest = max(source.tensors.values(), key=lambda info: info.nbytes)
    dtype = compute_dtype(DTYPES.get(options.dtype), largest.dtype, device is not None and device.own_memory)
    here = device is None or device.where == "cpu"
    return compiling(dtype, not any(place.is_dir() for place in places(source, options))) if here else nullcontext(Compiling([]))


def _memory(options: Options) -> AbstractContextManager[None]:
    """Preparing keeps what it frees, and takes a third less time, where memory is plentiful: by the machine, and by what the user
    allows."""
    allowed = spare_bytes()
    if options.memory is not None:
        allowed = min(allowed, parse_size(options.memory, "memory") - resident_bytes())
    return startup.keeping_memory() if allowed > PLENTY else nullcontext()


def _moments(source: Checkpoint, layout: ModelLayout, config: Any, options: Options, report: Report | None, note: Note) -> None:
    """Note the second moments of each Linear's inputs. A Store that is there needs none, nor the tokenizer that is read for them.

    It is no stage of its own where weights are encoded meanwhile: a mix waits for all moments."""
    report = report if options.recipe.mixes else None
    calibration.moments_of_text(source, layout, config, tokenizer_of(source.path), options.text or "", report, note)


def _said_copy(options: Options) -> str:
    """Which copy was chosen, in words; empty where it was asked for."""
    if not options.bits_left_open:
        return ""
    other = f" (--bits {USUAL.removeprefix('int')} takes less memory)" if options.recipe_quantizer != USUAL else ""
    return f" with a copy of {options.recipe_quantizer.removeprefix('int')} bits{other}"


def said_published(config: Mapping[str, Any]) -> str:
    """What is exact of a model whose weights are published quantised, by its config.json, in one line; empty: they are not."""
    dtype = str(dtype_of(config)).removeprefix("torch.")
    how = in_words(config)
    if not how:
        return ""
    by = "multiplies by where it has no kernel of its own" if transposed(config) else "makes of it (dequantize=True)"
    return f"Published in {how}: exact are the {dtype} weights that transformers {by}"


def refuse_linked_codes(config: Mapping[str, Any], options: Options) -> None:
    """Raise UsageError where weights are to be read from files that hold them as codes alone."""
    if options.link and (how := in_words(config)):
        raise UsageError(f"--link reads weights as they are published, and these are published in {how}: leave it out.")


def said_aside(source: Checkpoint, layout: ModelLayout, coding: str) -> str:
    """How much of the checkpoint its text model does not use, in one line, and where that is kept."""
    names = [name for part in layout.aside.values() for name in part]
    size = format_size(sum(each.nbytes for name in names for each in source.info(name).published))
    # further layers predict further tokens, as parts that are called so do
    predicts = any(re.match(r"(mtp|layers)(\W|_|$)", part) for part in layout.aside)
    uses = [] if codec(coding).linked else ["`understudy export`"]
    uses += ["--method mtp"] if predicts else []
    kept = ("where they are" if codec(coding).linked else "on disk") + (f", for {' and '.join(uses)}" if uses else "")
    return f"Left aside: {len(names)} tensors, {size}: {', '.join(layout.aside)} (kept {kept})"


def choose_codec(
    source: Checkpoint, layout: ModelLayout, options: Options, device: Device | None
) -> Options:
    """Options with what was left open: as in a Store which is there, else the fastest codec here.

    device: where the model will run; None: it is opened."""
    if options.output is None:
        for candidate in left_open(options):
            if stored_at(source, candidate).is_dir():
                return candidate
    if options.codec != AUTO:
        return options
    if options.output is not None and ((directory := Path(options.output).expanduser()) / INDEX).is_file():
        return replace(options, codec=Store.open(directory).recipe.codec)
    weights = source.info(layout.linears[0].weight)
    link = options.slowed(Machine.inspect().measured(weights.file, options.cache).link_bandwidth)
    device = device or open_device(options.device)
    form = form_among(layout, source.tensors)
    return replace(options, codec=fastest_codec(link, weights.dtype, options.recipe_quantizer, device, form))


def proven_config(directory: Path, options: Options) -> Any:
    """The transformers config in `directory`, for the context that `options` ask for. Raises CheckpointError for a model that would
    not be run exactly."""
    config = config_of(directory)
    prove(config, options.cache)
    return for_context(config, options.context)


def layout_of(checkpoint: Checkpoint, cache: Path) -> ModelLayout:
    """Which tensor plays which part. Raises CheckpointError for models that cannot be run exactly. What a pass of the model does
    is kept in the directory `cache`."""
    config = config_of(checkpoint.path)
    model = structure.skeleton(config, torch.bfloat16, attention_name())
    return structure.in_blocks(structure.layout(model, checkpoint.tensors, _traced(model, config, cache)))


def _traced(model: nn.Module, config: Any, cache: Path) -> structure.Trace:
    """What a pass of the stock `model` does: as in the directory `cache`, or traced and kept there. Classes that are not of
    transformers' own may change behind the same config, so they are always traced."""
    linears = structure.streamed_linears(model)
    expected = sorted([*linears, *stacks(model)])
    if not type(model).__module__.startswith("transformers."):
        return structure.trace(model, linears)
    # Where the checkpoint lies does not matter.
    values = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    name = f"traces/{config.model_type}-{key_of(config, values)}.json"
    with suppress(TypeError):
        seen = structure.Trace(**(recall(cache, name) or {}))
        if sorted(seen.order) == expected:
            return seen
    seen = structure.trace(model, linears)
    keep(cache, name, asdict(seen))
    return seen
