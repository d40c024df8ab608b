"""`understudy pull`: download a model of the hub before it is run, as far as runs need it."""

import os
from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from ..plan.sizes import format_size
from .live import Live, Progress
from .options import OUTPUT, declare
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", metavar="ORG/NAME", help="a model of the hub (also: ORG/NAME@REVISION)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: the main one)")
    declare(parser, OUTPUT)


def _run(args: Namespace) -> int:
    if Path(args.model).expanduser().is_dir():
        raise UsageError(f"{args.model} is a directory here: there is nothing to download.")
    live = Live(args.quiet)
    # The client draws bars of its own for what it does beside downloading.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from ..plan.machine import free_bytes
    from ..weights.hub import remote

    model = remote(args.model, args.revision)
    total = sum(file.nbytes for file in model.files)
    missing = model.missing
    here = "" if missing == total else f", of which {format_size(total - missing)} are here"
    live.say(f"{model.name} at {model.commit[:12]}: {len(model.files)} files, {format_size(total)}{here}.")
    if missing > (room := free_bytes(model.path)):
        raise UsageError(
            f"{format_size(missing)} are missing and {format_size(room)} are free in {model.path}: make room, or set HF_HOME to"
            " a larger disk."
        )
    if missing:
        progress = Progress(live)
        model.fetch(lambda done, whole: progress("downloading", done, whole))
        live.clear()
    live.say(f"It is in {model.path}.")
    if args.json:
        told = {"path": str(model.path), "commit": model.commit, "bytes": total, "downloaded": missing}
        print(to_json(told))
    return 0


command = Command("download a model of the hub", _declare, _run)
