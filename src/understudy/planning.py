"""What plans are made of before a model is loaded: sizes that are foretold, a device, a codec, and what memory holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .blueprint import Blueprint
from .codecs import FALLBACK, candidates
from .copy_bits import FORETOLD, fewer_bits, fits, pays, streams_less
from .devices import Device, open_device
from .devices.codec_speed import fastest_codec
from .devices.elsewhere import devices_of
from .devices.several import open_devices, several
from .drafters import DEFAULT_METHOD
from .errors import UsageError
from .heads.source import Bearer
from .models.footprint import sizes_of_checkpoint
from .models.mixtures.experts import stacks
from .models.stock import structure
from .models.stock.configuration import tokenizer_of
from .models.stock.shape import compute_dtype
from .models.stock.wrapper import text_config
from .models.streamed import attention_name
from .options import AUTO, DTYPES, MORE, USUAL, Options
from .plan.machine import Machine, check_spare
from .plan.other_machine import OtherMachine
from .plan.placement import Plan
from .sources import Report, choose_codec, layout_of, locate, prepare_source, proven_config
from .stores import Made
from .weights.checkpoint import Checkpoint, TensorInfo, read_object
from .weights.encoding import check_linears, form_among
from .weights.layout import ModelLayout
from .weights.packed import MXFP4
from .weights.published import dtype_of, foretold_codes, form_of
from .weights.published import foretold as in_mxfp4
from .weights.store import Store

# What preparing a model takes at most beside what a process holds when it has proven its kind, kernels that are compiled for it
# included; by the kernel's count, see docs/log.md.
PREPARING = 240 << 20
# What its largest weight adds at most; 4 bytes a number.
LARGEST = 112 << 20


@dataclass(frozen=True)
class Foretold:
    """A model that is not prepared: what it would take is foretold from its tensors' shapes."""

    # The transformers config.
    config: Any
    tensors: Mapping[str, TensorInfo]
    # The part that each tensor plays.
    layout: ModelLayout

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.tensors[self.layout.linears[0].weight].dtype

    @property
    def form(self) -> str:
        """The form in which its weights are published, where that counts for the choice of a codec."""
        return form_among(self.layout, self.tensors)

    @property
    def bearer(self) -> Bearer:
        """The model, as a trained head is checked against it."""
        return Bearer.foretold("The model", self.config, self.tensors, self.layout)

    def blueprint(self, options: Options, machine: Machine, device: Device) -> Blueprint:
        """Its blueprint. The codec must have been chosen."""
        return Blueprint(
            config=self.config,
            sizes=sizes_of_checkpoint(self.tensors, self.layout, options.recipe, options.holds_substitute, options.holds_head),
            dtype=compute_dtype(DTYPES.get(options.dtype), self.dtype, device.own_memory),
            machine=machine,
            device=device,
            options=options,
            bearer=self.bearer,
        )

    def plan(self, options: Options, machine: Machine, devices: Sequence[Device], second: Blueprint | None = None) -> Plan:
        """Its plan on `devices`, beside a `second` model that drafts.

        The UsageError of one that does not fit says whether fewer bits would."""

        def drawn(wanted: Options) -> Blueprint:
            return replace(self.blueprint(wanted, machine, devices[0]), second=second, further=tuple(devices[1:]))

        def planned(wanted: Options) -> Plan:
            return drawn(wanted).plan()

        try:
            plan = planned(options)
            # The smallest budget is that of the smallest copy which options leave open.
            smallest = options.smallest
            least = plan.least_bytes if smallest == options else drawn(smallest).least_for(plan.context)
            return replace(plan, least_bytes=least)
        except UsageError as error:
            for bits, fewer in fewer_bits(options):
                try:
                    planned(fewer)
                except UsageError:
                    continue
                raise UsageError(f"{error} It fits with --bits {bits}.") from None
            raise


def foretold_of_config(place: str | Path, options: Options) -> tuple[Foretold, dict[str, Any]]:
    """The model of a config.json, in the directory `place`, or the file itself; and what the file says.

    Raises UsageError where nothing can be planned."""
    directory = path.parent if (path := Path(place).expanduser()).name == "config.json" else path
    if not (directory / "config.json").is_file():
        raise UsageError(f"There is no {directory / 'config.json'}: --config takes the directory of one.")
    if options.revision is not None:
        raise UsageError("--revision is for a model of the hub, and --config names a directory here.")
    if options.drafter.second_model is not None:
        name = options.method_name
        raise UsageError(f"--method {name} compares tokenizers, and --config has none: give MODEL instead.")
    config, content = proven_config(directory, options), read_object(directory / "config.json")
    named = getattr(config, "dtype", None) or getattr(text_config(config), "dtype", None) or DTYPES.get(options.dtype)
    dtype = dtype_of(content) if form_of(content) else named
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise UsageError(f"{directory / 'config.json'} does not say the weights' type: give it with --dtype.")
    model = structure.skeleton(config, dtype, attention_name())
    tensors = structure.foretold(model, dtype, directory)
    if form_of(content) == MXFP4:
        made = ((tensors[name], (stack.experts, stack.outputs, stack.inputs)) for name, stack in stacks(model).items())
        tensors |= {info.name: in_mxfp4(info, shape) for info, shape in made}
    layout = structure.in_blocks(structure.layout(model, tensors))
    check_linears(layout, tensors)
    tensors |= foretold_codes(content, tensors, layout)
    foretold = Foretold(config, tensors, layout)
    options.drafter.check(foretold.bearer)
    return foretold, content


def check_drafter(source: Checkpoint | Store, config: Any, options: Options) -> None:
    """Raise UsageError where a trained head was chosen that does not fit the model in `source`, which may take long to prepare."""
    drafter = options.drafter
    if drafter.head is None:
        return
    if isinstance(source, Store):
        drafter.check(Bearer.of_store(source, config))
    else:
        drafter.check(Foretold(config, source.tensors, layout_of(source, options.cache)).bearer)


def planned_devices(options: Options, other: OtherMachine | None) -> list[Device]:
    """The devices to plan for, the first in front: of this machine, or of the `other` machine.

    UsageError where --device or --devices contradicts it."""
    if other is None:
        if options.devices is not None:
            return open_devices(options.devices, options.host_memory)
        return [open_device(options.device, options.host_memory)]
    named = several(options.devices) if options.devices is not None else [(options.device, 0)]
    if named[0][0] not in (AUTO, other.device):
        asked = f"--device {options.device}" if options.devices is None else f"--devices {options.devices}"
        raise UsageError(f"{asked} contradicts --for {other.device}: leave one of them out.")
    return devices_of(other, options.host_memory, [number for _, number in named] if options.devices is not None else [])


def planned_device(options: Options, other: OtherMachine | None) -> Device:
    """The device of what is planned for one alone. UsageError for several."""
    if options.devices is not None:
        raise UsageError(f"This plans for one device: leave --devices {options.devices} out.")
    return planned_devices(options, other)[0]


def chosen_elsewhere(options: Options, other: OtherMachine | None, foretold: Foretold, device: Device) -> Options:
    """Options with a codec where it was left open: the fastest one for the link of the `other` machine, or for a usual link."""
    if options.codec != AUTO:
        return options
    link = options.slowed(0.0 if other is None else float(other.link or other.disk))
    return replace(options, codec=fastest_codec(link, foretold.dtype, options.recipe_quantizer, device, foretold.form))


@dataclass(frozen=True)
class MemoryCeiling:
    """What of a checkpoint fits on a device of this machine (a `sources.Ceiling`)."""

    source: Checkpoint
    device: Device

    def suited(self, config: Any, layout: ModelLayout, options: Options) -> Options:
        foretold = Foretold(config, self.source.tensors, layout)
        file = self.source.info(layout.linears[0].weight).file

        def machine() -> Machine:
            return Machine.inspect().measured(file, options.cache)

        def coded(wanted: Options) -> Options:
            return choose_codec(self.source, layout, wanted, self.device)

        options = suited_copy(foretold, options, self.device, machine, coded)
        return suited_head(foretold, options, Machine.inspect(), self.device)

    def holds(self, store: Store, config: Any, options: Options) -> bool:
        blueprint = Blueprint.of_store(store, config, options, Machine.inspect(), self.device)
        try:
            # Its sizes are not foretold.
            return blueprint.least_bytes <= blueprint.budget
        except UsageError:
            # Options that no plan can have are told by whoever plans with them.
            return True

    def pays(self, more: Made, usual: Made, config: Any) -> bool:
        store, options = more

        def drawn() -> list[Blueprint]:
            machine = measured(store, options)
            return [Blueprint.of_store(made, config, wanted, machine, self.device) for made, wanted in (more, usual)]

        return pays(options, store.dtype, self.device, drawn)

    def check(self, config: Any, layout: ModelLayout, options: Options) -> None:
        """Before minutes are spent on preparing a model whose plan would miss the budget clearly."""
        if options.devices is not None:
            # Each of them may hold a part of it.
            return self.check_preparing(layout)
        foretold, machine = Foretold(config, self.source.tensors, layout), Machine.inspect()
        blueprint = foretold.blueprint(options, machine, self.device)
        if blueprint.least_bytes > blueprint.budget * FORETOLD:
            foretold.plan(options, machine, [self.device])
        self.check_preparing(layout)

    def check_preparing(self, layout: ModelLayout) -> None:
        needed = PREPARING + min(4 * max(spec.shape[0] * spec.shape[1] for spec in layout.linears), LARGEST)
        advice = "start again, which takes less once kernels are compiled, or run `understudy prepare` where there is more"
        check_spare(needed, "Preparing this model, which is done once,", advice)


def suited_copy(
    foretold: Foretold, options: Options, device: Device, measured: Callable[[], Machine], coded: Callable[[Options], Options]
) -> Options:
    """Options with the copy chosen, where its bits were left open: more than the usual ones where they fit and pay.

    `measured`: the machine, with its speeds; `coded`: options with a codec, where it is left open. Both are asked only where they
    count, since measuring takes time and memory."""
    if not options.bits_left_open or options.copy_chosen:
        return options
    usual, more = options.with_copy(USUAL), options.with_copy(MORE)
    # Of the codecs that may be chosen later the one that streams least: where that does not pay, none does.
    able = options.codec if options.codec != AUTO else candidates(foretold.dtype, MORE, foretold.form)[0].name

    def drawn() -> list[Blueprint]:
        machine = measured()
        return [foretold.blueprint(replace(wanted, codec=able), machine, device) for wanted in (more, usual)]

    pays_here = pays(replace(more, codec=able), foretold.dtype, device, drawn)
    return more if pays_here and streams_less(coded(more).codec, foretold.dtype) else usual


def suited_head(foretold: Foretold, options: Options, machine: Machine, device: Device) -> Options:
    """Options whose head has the bits of all weights where its own were left open and do not fit with a little to spare."""
    if not options.head_left_open:
        return options
    # of all codecs the one whose parts take most room
    largest = replace(options, codec=FALLBACK) if options.codec == AUTO else options
    return options if fits(foretold.blueprint(largest, machine, device)) else replace(options, recipe_head="")


def measured(store: Store, options: Options) -> Machine:
    """The machine with the speed of the disk under this Store."""
    return Machine.inspect().measured(store.streamed, options.cache)


def with_second(blueprint: Blueprint, directory: Path, report: Report | None) -> Blueprint:
    """With the second model that the drafter needs, prepared and held whole; as it is where none is needed.

    Raises UsageError unless its tokens are those of the model in `directory`, and for a Store that is not made to be held whole."""
    model = blueprint.options.drafter.second_model
    if model is None:
        return blueprint
    if not model:
        name = blueprint.options.method_name
        raise UsageError(f"{name} needs the model that drafts: --method {name}:MODEL.")
    options = blueprint.options.held_whole()
    source = locate(model, options, as_it_is=True)
    if isinstance(source, Store) and source.recipe.quantizer != options.recipe_quantizer:
        remedy = f"name its checkpoint, --method {blueprint.options.method_name}:MODEL"
        raise UsageError(f"A second model is held whole, and {source.path} keeps it beside a copy: {remedy}.")
    store = prepare_source(source, options, report, blueprint.device)
    if tokenizer_of(store.path).get_vocab() != tokenizer_of(directory).get_vocab():
        raise UsageError(
            f"{model} cannot draft for this model: their tokenizers differ."
            f" --method {DEFAULT_METHOD} needs no second model."
        )
    second = Blueprint.of_store(store, proven_config(store.path, options), options, blueprint.machine, blueprint.device)
    return replace(blueprint, second=second)
