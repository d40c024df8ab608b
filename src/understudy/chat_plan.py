"""Plans a conversation with a model, which is not loaded: here or on another machine, prepared, a checkpoint, or a config alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .blueprint import Blueprint
from .codecs import FALLBACK
from .concessions import FITS, Chat, Drawn, Planner, plan_chat
from .errors import UsageError
from .options import AUTO, Options
from .plan.conversation import Conversation
from .plan.machine import Machine
from .plan.other_machine import OtherMachine
from .plan.rounds import Arithmetic
from .planning import (
    Foretold,
    check_drafter,
    chosen_elsewhere,
    foretold_of_config,
    measured,
    planned_device,
)
from .registry import lookup
from .sources import choose_codec, layout_of, locate, proven_config, stored_at
from .weights.store import Store


def chat_for(
    place: str | Path | None, asked: tuple[Conversation, str, str], options: Options, arithmetic: Arithmetic,
    other: OtherMachine | None = None, *, config_alone: bool = False,
) -> Chat:  # fmt: skip
    """What a conversation with the model in `place` takes.

    asked: the conversation, what to hold (one of FITS), and the method of a trained head that may draft in the place of the copy,
    or "". config_alone: `place` is the directory of a config.json. Raises UsageError for what contradicts, or does not fit."""
    conversation, fit, head = asked
    _check(conversation, fit, head, options)
    options = replace(options, context=conversation.tokens, rows=conversation.clients)
    model = drawable(place, options, other, config_alone=config_alone)
    planner = Planner(conversation, arithmetic, model.drawn, changeable=model.changeable)
    return plan_chat(planner, model.options, fit, head)


@dataclass(frozen=True)
class Drawable:
    """A model whose blueprint can be drawn for any options: it is prepared, a checkpoint, or a config alone."""

    drawn: Drawn
    # With a codec chosen.
    options: Options
    # May the copy have other bits, and exact weights another codec?
    changeable: bool


def drawable(
    place: str | Path | None, options: Options, other: OtherMachine | None = None, *, config_alone: bool = False
) -> Drawable:
    """The model in `place`, here or on the `other` machine. config_alone: `place` is the directory of a config.json.

    Raises UsageError for options that contradict, CheckpointError for a model that cannot be found or used."""
    device = planned_device(options, other)
    if config_alone:
        assert place is not None
        foretold = foretold_of_config(place, options)
        machine = Machine.inspect() if other is None else other.machine()
        options = chosen_elsewhere(options, other, foretold.dtype, device)
    else:
        source = locate(place, options)
        config = proven_config(source.path, options)
        check_drafter(source, config, options)
        if isinstance(source, Store):
            machine = measured(source, options) if other is None else other.machine()

            def stored(wanted: Options) -> Blueprint:
                return Blueprint.of_store(source, config, wanted, machine, device)

            return Drawable(stored, _with_codec(options), changeable=False)
        layout = layout_of(source)
        foretold = Foretold(config, source.tensors, layout)
        info = source.info(layout.linears[0].weight)
        if other is None:
            options = choose_codec(source, layout, options, device)
            stored_here = stored_at(source, options)
            file = Store.open(stored_here).streamed if stored_here.is_dir() else info.file
            machine = Machine.inspect().measured(file, options.cache)
        else:
            options = chosen_elsewhere(options, other, info.dtype, device)
            machine = other.machine()

    def drawn(wanted: Options) -> Blueprint:
        return foretold.blueprint(wanted, machine, device)

    return Drawable(drawn, options, changeable=not options.link)


def _with_codec(options: Options) -> Options:
    """A Store has its codec already: what is not chosen is of no consequence."""
    return replace(options, codec=FALLBACK) if options.codec == AUTO else options


def _check(conversation: Conversation, fit: str, head: str, options: Options) -> None:
    """Raise UsageError for options that contradict one another."""
    lookup("fit", fit, dict.fromkeys(FITS, ""))
    conversation.check_reserved("--chat", options.rows, options.context)
    if options.drafter.second_model is not None:
        raise UsageError(f"--chat plans for one model, and --method {options.method_name} loads two: choose another method.")
    if head and not options.holds_substitute:
        raise UsageError("--draft-head takes the place of the copy, which this --method does not use: leave one of them out.")
