"""Models that are planned for and not loaded: prepared ones, checkpoints and configs alone, here or on another machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .blueprint import Blueprint
from .codecs import FALLBACK
from .devices import Device
from .options import AUTO, Options
from .plan.machine import Machine
from .plan.other_machine import OtherMachine
from .plan.placement import Plan
from .planning import (
    Foretold,
    MemoryCeiling,
    check_drafter,
    chosen_elsewhere,
    foretold_of_config,
    measured,
    planned_device,
    planned_devices,
    suited_copy,
    suited_head,
    with_second,
)
from .sources import choose_codec, layout_of, locate, proven_config, refuse_linked_codes, said_published
from .stores import prepared, stored_at
from .weights.checkpoint import Checkpoint
from .weights.store import Store

# How a model that is not prepared is known, and what its link is.
FROM_CONFIG = "from the config alone", "there is no link to measure (--for describes a machine)"
FROM_CHECKPOINT = "not prepared yet", "the link is the checkpoint's"


@dataclass(frozen=True)
class Drawable:
    """A model whose blueprint can be drawn for any options."""

    # With a codec chosen.
    options: Options
    machine: Machine
    # The first drafts; the others hold exact weights beside it.
    devices: tuple[Device, ...]
    # Draws its blueprint.
    drawn: Callable[[Options], Blueprint]
    # Options with the copy that a run in a budget of so many bytes would have.
    in_budget: Callable[[int], Options]
    # Where its tokenizer is; None: it has none.
    directory: Path | None
    # What it would take, where it is not prepared; None: it is.
    foretold: Foretold | None = None
    # What a reader of its plans must know.
    notes: tuple[str, ...] = ()

    @property
    def changeable(self) -> bool:
        """May the copy have other bits, and exact weights another codec?"""
        return self.foretold is not None and not self.options.link

    def plan(self) -> Plan:
        """Where every byte would go. Raises UsageError where it does not fit."""
        blueprint = self.drawn(self.options)
        if self.directory is not None:
            blueprint = with_second(blueprint, self.directory, None)
        if self.foretold is None:
            return replace(blueprint, further=self.devices[1:]).plan().noted(*self.notes)
        return self.foretold.plan(self.options, self.machine, self.devices, blueprint.second).noted(*self.notes)


@dataclass(frozen=True)
class _Choice:
    """Chooses the copy of a model that is not prepared."""

    foretold: Foretold
    device: Device
    # The machine with its speeds, and options with a codec where it is left open: asked only where they count.
    measured: Callable[[], Machine]
    coded: Callable[[Options], Options]
    # The checkpoint of which a run takes a Store that is there; None: none is.
    source: Checkpoint | None = None

    def of(self, options: Options) -> Options:
        """Options with the copy chosen."""
        return suited_copy(self.foretold, options, self.device, self.measured, self.coded)

    def in_budget(self, options: Options, budget: int) -> Options:
        """Options with copy, head and codec as a run in `budget` bytes would have them, on a machine that has so much."""
        wanted = replace(options, memory=budget)
        if self.source is not None and options.bits_left_open:
            store, wanted = prepared(self.source, self.foretold.config, wanted, MemoryCeiling(self.source, self.device))
            if store is not None:
                return replace(wanted, memory=options.memory)

        def roomy() -> Machine:
            machine = self.measured()
            return replace(machine, total_memory=max(machine.total_memory, budget))

        chosen = replace(self, measured=roomy).of(wanted)
        chosen = suited_head(self.foretold, chosen, roomy(), self.device)
        return replace(self.coded(chosen), memory=options.memory)


def drawable(
    place: str | Path | None, options: Options, other: OtherMachine | None = None, *,
    config_alone: bool = False, as_it_is: bool = False,
) -> Drawable:  # fmt: skip
    """The model in `place`, here or on the `other` machine.

    config_alone: `place` is a config.json, or its directory. as_it_is: what would run with these options is wanted: a Store that is
    there takes the place of its checkpoint, and the head has the bits that fit. Else sizes are foretold for any options.

    Raises UsageError for options that contradict, CheckpointError for a model that cannot be found or used."""
    devices = tuple(planned_devices(options, other)) if as_it_is else (planned_device(options, other),)
    device = devices[0]
    machine = Machine.inspect() if other is None else other.machine()
    if config_alone:
        assert place is not None
        foretold, content = foretold_of_config(place, options)
        refuse_linked_codes(content, options)
        there = partial(chosen_elsewhere, other=other, foretold=foretold, device=device)
        choice = _Choice(foretold, device, lambda: machine, there)
        in_budget = partial(choice.in_budget, options)
        options = choice.of(options)
        options = there(suited_head(foretold, options, machine, device) if as_it_is else options)
        return _foretold(choice, options, machine, devices, in_budget, None, _said(content, other, *FROM_CONFIG))
    source = locate(place, options)
    config = proven_config(source.path, options)
    check_drafter(source, config, options)
    if isinstance(source, Store):
        return _stored(source, config, options, devices, other)
    refuse_linked_codes(source.config, options)
    asked = options
    if other is None:
        held, options = _copy_here(source, config, options, device)
        if held is not None and as_it_is:
            return _stored(held, config, options, devices, other)
    foretold = Foretold(config, source.tensors, layout_of(source, options.cache))
    coded: Callable[[Options], Options] = partial(chosen_elsewhere, other=other, foretold=foretold, device=device)
    measuring: Callable[[], Machine] = partial(Machine.measured, machine, _file(source, foretold), options.cache)
    if other is None:
        coded = partial(choose_codec, source, foretold.layout, device=device)
    here = source if other is None else None
    choice = _Choice(foretold, device, measuring if other is None else other.machine, coded, here)
    options = choice.of(options)
    options = coded(suited_head(foretold, options, machine, device) if as_it_is else options)
    store = Store.open(path) if (path := stored_at(source, options)).is_dir() else None
    if store is not None and as_it_is:
        return _stored(store, config, options, devices, other)
    if other is None:
        machine = machine.measured(_file(source, foretold) if store is None else store.streamed, options.cache)
    in_budget = partial(choice.in_budget, asked)
    return _foretold(choice, options, machine, devices, in_budget, source.path, _said(source.config, other, *FROM_CHECKPOINT))


def _copy_here(source: Checkpoint, config: object, options: Options, device: Device) -> tuple[Store | None, Options]:
    """The Store that a run would take where bits are left open, if one is there, and options with its copy."""
    if not options.bits_left_open:
        return None, options
    store, left = prepared(source, config, options, MemoryCeiling(source, device))
    return store, left if store is None else options.with_copy(store.recipe.quantizer)


def _stored(
    store: Store, config: object, options: Options, devices: tuple[Device, ...], other: OtherMachine | None
) -> Drawable:
    """A model that is prepared. It has its codec already: what is not chosen is of no consequence."""
    options = replace(options, codec=FALLBACK) if options.codec == AUTO else options
    options = options.with_copy(store.recipe.quantizer) if options.bits_left_open else options
    machine = measured(store, options) if other is None else other.machine()

    def drawn(wanted: Options) -> Blueprint:
        return Blueprint.of_store(store, config, wanted, machine, devices[0])

    notes = said_published(store.config), *(() if other is None else (other.note,))
    return Drawable(options, machine, devices, drawn, lambda budget: options, store.path, notes=notes)


def _foretold(
    choice: _Choice, options: Options, machine: Machine, devices: tuple[Device, ...], in_budget: Callable[[int], Options],
    directory: Path | None, notes: tuple[str, ...],
) -> Drawable:  # fmt: skip
    """A model that is not prepared."""
    drawn = partial(choice.foretold.blueprint, machine=machine, device=devices[0])
    return Drawable(options, machine, devices, drawn, in_budget, directory, choice.foretold, notes)


def _file(source: Checkpoint, foretold: Foretold) -> Path:
    """The file whose disk is the link of a checkpoint that is not prepared."""
    return source.info(foretold.layout.linears[0].weight).file


def _said(config: Mapping[str, object], other: OtherMachine | None, how: str, link: str) -> tuple[str, ...]:
    """What a reader must know of the plan of a model that is not prepared: how its weights are published by its config.json, `how`
    it is known, and what its `link` is here."""
    told, published = f"{how}: sizes are foretold", said_published(config)
    return (f"{told}, and {link}", published) if other is None else (told, other.note, published)


def plan_for(
    place: str | Path | None, options: Options, other: OtherMachine | None = None, *, config_alone: bool = False
) -> Plan:
    """Where every byte would go, here or on the `other` machine. Nothing is prepared for it. Args, Raises: those of `drawable`."""
    return drawable(place, options, other, config_alone=config_alone, as_it_is=True).plan()
