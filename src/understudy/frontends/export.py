"""`understudy export`: writes the safetensors checkpoint that a prepared model was made from."""

from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from .live import Live
from .options import OUTPUT, declare
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("store", type=Path, metavar="STORE", help="a directory that `understudy prepare` made")
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write; must not exist yet or be empty")
    declare(parser, OUTPUT)


def _run(args: Namespace) -> int:
    live = Live(args.quiet)
    if args.directory.exists() and (not args.directory.is_dir() or any(args.directory.iterdir())):
        raise UsageError(f"{args.directory} is not empty: name a new directory to write to.")
    from ..weights.export import export
    from ..weights.store import Store

    live.draw("writing")
    export(Store.open(args.store), args.directory)
    live.clear()
    live.say(f"Written to {args.directory}.")
    if args.json:
        print(to_json({"directory": str(args.directory)}))
    return 0


command = Command("turn a prepared model back into safetensors", _declare, _run)
