"""`understudy chat`: a conversation. The cache is kept between turns, so only what is new is read."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import CheckpointError, RoomError, StoreError, UnderstudyError, UsageError
from . import opening
from .form import formed
from .live import Live, Progress
from .model import resolve
from .options import CONFIG_FILE, DEFAULTS, FORM, METHOD, OUTPUT, PLACEMENT, SAMPLING, declare, placement, sampling
from .parser import Command, Parser
from .reply import Answer, receive
from .show import to_json
from .streams import OutputError, complain

if TYPE_CHECKING:
    from ..llm import LLM
    from ..params import SamplingParams

HELP = "Write a line and press Enter. /reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C cuts it short."

# Where the next line is waited for.
PROMPT = "> "

# After a turn that there is no room for.
KEPT = "The conversation is as it was: write a shorter turn, or /reset."


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt: what the model is told before the first turn")
    declare(parser, PLACEMENT, METHOD, SAMPLING, FORM, DEFAULTS, CONFIG_FILE, OUTPUT)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    params = formed(sampling(args), args)
    first = [{"role": "system", "content": args.system}] if args.system else []
    live = Live(args.quiet)
    with opening.llm()(model, progress=Progress(live), **placement(args), grammars=params.constraint is not None) as llm:
        live.clear()
        for line in llm.generation.lines(params):
            live.say(line)
        if sys.stdin.isatty():
            # A template that cannot be used is told before anything is asked. Nothing runs: no step is taken.
            llm.stream_chat([*first, {"role": "user", "content": "Hello"}], params)
            live.say(HELP)
        _converse(llm, params, live, args.json, first)
    return 0


def _converse(llm: "LLM", params: "SamplingParams", live: Live, as_json: bool, first: Sequence[dict[str, str]]) -> None:
    """Turn after turn, as long as lines come. `first`: what stands before all turns."""
    messages = [*first]
    while (line := _line()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            messages[:] = first
            live.say("(forgotten)")
        elif line.startswith("/"):
            live.say(f"No command {line.split()[0]}. {HELP}")
        elif line:
            messages.append({"role": "user", "content": line})
            reply = _answer(llm, messages, params, live, as_json)
            if reply is not None and reply.text:
                messages.append({"role": "assistant", "content": reply.text})
            else:
                # The turn failed, or was cut before a word was said: as if it had not been asked.
                messages.pop()
            if reply is not None:
                _finish(reply, as_json)


def _answer(
    llm: "LLM", messages: list[dict[str, str]], params: "SamplingParams", live: Live, as_json: bool
) -> Answer | None:
    """The answer to the last message. None where it failed and the person at the terminal may try something else."""
    try:
        return receive(llm.stream_chat(messages, params), live, silent=as_json)
    except (CheckpointError, StoreError, OutputError):
        raise
    except UnderstudyError as error:
        if not sys.stdin.isatty():
            raise
        live.end()
        complain(f"{error} {KEPT}" if isinstance(error, RoomError) else str(error))
        return None


def _finish(reply: Answer, as_json: bool) -> None:
    """End the answer, so that the next one starts on a line of its own."""
    if as_json:
        print(to_json(reply.to_dict()), flush=True)
    elif not sys.stdout.isatty() and not reply.text.endswith("\n"):
        print(flush=True)


def _line() -> str | None:
    """The next line the user wrote; None when there are no more.

    At a terminal lines can be edited, come back with the arrow keys, and may have line breaks that are pasted. Left to itself, a
    terminal also cuts a line off after 4,095 bytes."""
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            import readline  # noqa: F401  # what `input` reads lines with

            return input(PROMPT).strip()
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        line = sys.stdin.readline()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not text in {error.encoding}: {error.reason}.") from None
    return line.strip() if line else None


command = Command("a conversation in the terminal", _declare, _run)
