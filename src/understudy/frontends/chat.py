"""`understudy chat`: a conversation. The cache is kept between turns, so only what is new is read."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from .live import Live, Progress
from .model import resolve
from .options import DEFAULTS, METHOD, OUTPUT, PLACEMENT, SAMPLING, declare, placement, sampling
from .parser import Command, Parser
from .reply import Reply, receive
from .show import to_json

if TYPE_CHECKING:
    from ..llm import LLM
    from ..params import SamplingParams

HELP = "Write a line and press Enter. /reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C cuts it short."


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    declare(parser, PLACEMENT, METHOD, SAMPLING, DEFAULTS, OUTPUT)


def _run(args: Namespace) -> int:
    model, params = resolve(args.model), sampling(args)
    live = Live(args.quiet)
    from ..llm import LLM

    with LLM(model, progress=Progress(live), **placement(args)) as llm:
        live.clear()
        for line in llm.generation.lines(params):
            live.say(line)
        if sys.stdin.isatty():
            live.say(HELP)
        _converse(llm, params, live, args.json)
    return 0


def _converse(llm: "LLM", params: "SamplingParams", live: Live, as_json: bool) -> None:
    messages: list[dict[str, str]] = []
    while (line := _line()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            messages.clear()
            live.say("(forgotten)")
        elif line.startswith("/"):
            live.say(f"No command {line.split()[0]}. {HELP}")
        elif line:
            messages.append({"role": "user", "content": line})
            reply = receive(llm.stream_chat(messages, params), live, silent=as_json)
            if reply.text:
                messages.append({"role": "assistant", "content": reply.text})
            else:
                messages.pop()  # cut before a word was said: as if it had not been asked
            _finish(reply, as_json)


def _finish(reply: Reply, as_json: bool) -> None:
    """End the answer, so that the next one starts on a line of its own."""
    if as_json:
        print(to_json(reply.to_dict()), flush=True)
    elif not sys.stdout.isatty() and not reply.text.endswith("\n"):
        print(flush=True)


def _line() -> str | None:
    """The next line the user wrote; None when there are no more."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # line editing and history

        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


command = Command("a conversation in the terminal", _declare, _run)
