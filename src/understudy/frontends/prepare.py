"""`understudy prepare`: make the Store once, with progress; stopped half way, the same command goes on from there."""

from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from ..plan.sizes import format_size
from .live import Live, Progress, resumable
from .model import resolve
from .options import OUTPUT, PREPARATION, declare, preparation
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face id or a checkpoint directory (demo: the built-in)"
    )
    declare(parser, PREPARATION, OUTPUT)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to put the Store (default: in the cache)")


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise UsageError(f"{args.output} is a file: name a directory to write to.")
    live = Live(args.quiet)
    from ..inventory import disk_bytes
    from ..llm import LLM

    with resumable(live):
        store = LLM.prepare(model, output=args.output, progress=Progress(live), rows=1, **preparation(args))
    nbytes = disk_bytes(store.path)
    live.say(f"Prepared in {store.path} ({format_size(nbytes)}).")
    if args.json:
        print(to_json({"store": str(store.path), "bytes": nbytes}))
    return 0


command = Command("quantise a model once and lay it out for streaming", _declare, _run)
