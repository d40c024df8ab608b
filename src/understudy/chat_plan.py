"""Plans a conversation with a model, which is not loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .chat_table import Chat, Concession
from .concessions import FITS, Planner, kept_bits, plan_chat
from .drawable import drawable
from .errors import UsageError
from .options import SMALL, STAY, Options
from .plan.conversation import Conversation
from .plan.other_machine import FORM, OtherMachine
from .plan.rounds import Arithmetic
from .plan.sizes import format_size
from .registry import lookup
from .small_keys import NOT_EXACT


def chat_for(
    place: str | Path | None, asked: tuple[Conversation, str, str], options: Options, arithmetic: Arithmetic,
    other: OtherMachine | None = None, *, config_alone: bool = False,
) -> Chat:  # fmt: skip
    """What a conversation with the model in `place` takes.

    asked: the conversation, what to hold (one of FITS), and the method of a trained head that may draft in the place of the copy,
    or "". config_alone: `place` is the directory of a config.json. Raises UsageError for what contradicts, or does not fit."""
    conversation, fit, head = asked
    _check(conversation, fit, head, options)
    if config_alone and other is None and not options.throttle:
        why = "--config has no weights on a disk here, so nobody knows how fast they would come"
        raise UsageError(f"{why}: describe the machine with --for {FORM}; or give the speed with --throttle.")
    options = replace(options, context=conversation.tokens, rows=conversation.clients)
    model = drawable(place, options, other, config_alone=config_alone)
    planner = Planner(conversation, arithmetic, model.drawn, model.in_budget, changeable=model.changeable)
    chat = plan_chat(planner, model.options, fit, head)
    chat = replace(chat, inexact=_inexact(planner, model.options))
    return replace(chat, notes=(_of_keys(chat, model.options), *chat.notes))


def _inexact(planner: Planner, options: Options) -> Concession | None:
    """The smallest arrangement with keys and values of few bits; None where they are asked for already, or cannot be had."""
    drawn = planner.drawn(options)
    asked = options.small_keys or isinstance(options.spill, int) or options.prefix_cache is not None
    if asked or drawn.shape.all_bits or drawn.device.own_memory:
        return None
    said = f"precision of keys and values: {SMALL} bits, which is not exact"
    return planner.step(replace(options, kv_bits=SMALL, spill=STAY), (said, f"--kv-bits {SMALL}{kept_bits(options)}"))


def _of_keys(chat: Chat, options: Options) -> str:
    """What is said of the precision of keys and values, which is given up for nobody who does not ask for that."""
    if options.small_keys:
        return NOT_EXACT
    kept = "keys and values keep the model's type"
    if chat.inexact is None:
        return f"{kept}: fewer bits would not be exact, and there are none here"
    less = chat.exact_steps[-1].budget_bytes - chat.inexact.budget_bytes
    return f"{kept}: {chat.inexact.options} needs {format_size(less)} less and is not exact"


def _check(conversation: Conversation, fit: str, head: str, options: Options) -> None:
    """Raise UsageError for options that contradict one another."""
    lookup("fit", fit, dict.fromkeys(FITS, ""))
    conversation.check_reserved("--chat", options.rows, options.context)
    if options.drafter.second_model is not None:
        raise UsageError(f"--chat plans for one model, and --method {options.method_name} loads two: choose another method.")
    if head and not options.holds_substitute:
        raise UsageError("--draft-head takes the place of the copy, which this --method does not use: leave one of them out.")
