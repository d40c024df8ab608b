"""`understudy run`: one prompt, its continuation on stdout."""

from argparse import Namespace

from . import INTERRUPTED, opening
from .form import formed
from .live import Live, Progress
from .model import resolve
from .options import (
    CONFIG_FILE,
    DEFAULTS,
    FORM,
    METHOD,
    OUTPUT,
    PLACEMENT,
    PROMPT,
    SAMPLING,
    declare,
    placement,
    sampling,
)
from .parser import Command, Parser
from .prompt import prompt_of
from .reply import CANCELLED, receive
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue; - reads standard input")
    declare(parser, PLACEMENT, METHOD, SAMPLING, FORM, DEFAULTS, PROMPT, CONFIG_FILE, OUTPUT)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    params = formed(sampling(args), args)
    live = Live(args.quiet)
    prompt = prompt_of(args, demo=model is None, live=live)
    with opening.llm()(model, progress=Progress(live), **placement(args), grammars=params.constraint is not None) as llm:
        for line in llm.generation.lines(params):
            live.say(line)
        reply = receive(llm.stream(prompt, params), live, silent=args.json)
    if args.json:
        print(to_json(reply.to_dict()))
    return INTERRUPTED if reply.finish_reason == CANCELLED else 0


command = Command("continue a prompt, streamed to stdout", _declare, _run)
