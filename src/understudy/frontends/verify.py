"""`understudy verify`: read a prepared model from end to end, rebuild every weight, and compare it with the checkpoint."""

from argparse import Namespace

from .live import Live, Progress
from .model import resolve
from .options import OUTPUT, PREPARATION, declare, preparation
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Store, or a model, which is prepared first (demo: the built-in)")
    declare(parser, PREPARATION, OUTPUT)


def _run(args: Namespace) -> int:
    live = Live(args.quiet)
    report = Progress(live)
    from ..llm import LLM

    store = LLM.prepare(resolve(args.model), progress=report, rows=1, **preparation(args))
    store.verify(lambda done, total, name: report("verifying", done, total))
    live.clear()
    live.say(f"{store.path} is whole: {len(store.linears)} weights rebuilt, bit for bit those of {store.source.name}.")
    if args.json:
        print(to_json({"store": str(store.path), "weights": len(store.linears), "whole": True}))
    return 0


command = Command("check a prepared model against its source's checksums, bit for bit", _declare, _run)
