"""`understudy rm`: delete downloads and Stores that nobody uses."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..plan.sizes import format_size
from .options import OUTPUT, declare
from .parser import Command, Parser
from .show import to_json

if TYPE_CHECKING:
    from ..inventory import KnownModel, Removal


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="a model as `understudy ls` names it, with its Stores, or one Store; a directory of your own is never deleted",
    )  # fmt: skip
    parser.add_argument("--stores", action="store_true", help="only Stores: downloads stay")
    parser.add_argument("--stale", action="store_true", help="Stores that no run takes any more: unfinished, damaged or outdated")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    declare(parser, OUTPUT)


def _run(args: Namespace) -> int:
    if not args.names and not args.stale:
        raise UsageError("Name what to delete (`understudy ls` shows it), or give --stale.")
    from ..inventory import inventory
    from ..plan.remembered import cache_directory

    removal = _chosen(args, inventory(cache_directory(os.environ)))
    told = [f"the download {model.name}" for model in removal.models]
    told += [f"the Store {store.path.name}" for store in removal.stores]
    if told and not args.yes:
        _ask(f"Delete {', '.join(told)}? It frees {format_size(removal.nbytes)}.")
    removal.run()
    if not args.quiet:
        print(f"Deleted {', '.join(told)}: {format_size(removal.nbytes)}." if told else "Nothing is stale.", file=sys.stderr)
    if args.json:
        deleted = [*(str(model.path) for model in removal.models), *(str(store.path) for store in removal.stores)]
        print(to_json({"deleted": deleted, "bytes": removal.nbytes}))
    return 0


def _chosen(args: Namespace, models: Sequence["KnownModel"]) -> "Removal":
    """What the command line names. Raises UsageError for what is not there."""
    from ..inventory import Removal

    by_name = {model.name: model for model in models if model.name}
    stores = {name: store for model in models for store in model.stores for name in (store.path.name, str(store.path))}
    found = {store.path: store for store in stores.values() if args.stale and store.trouble}
    downloads = []
    for given in args.names:
        own = str(Path(given).expanduser().absolute())
        model = by_name.get(given) or by_name.get(own)
        store = stores.get(given) or stores.get(own)
        if model is not None:
            found |= {store.path: store for store in model.stores}
            downloads += [model] if model.kind == "hub" and not args.stores else []
            if not model.stores and not downloads:
                raise UsageError(f"There is no Store of {given}, and its checkpoint is not the hub's: delete that by hand.")
        elif store is not None:
            found[store.path] = store
        else:
            close = get_close_matches(given, [*by_name, *stores], n=1)
            hint = f" Did you mean {close[0]}?" if close else " `understudy ls` shows what is there."
            raise UsageError(f"There is no model or Store {given!r} here.{hint}")
    return Removal(downloads, list(found.values()))


def _ask(question: str) -> None:
    """Raise UsageError unless a person says yes."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Give --yes where nobody can be asked.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was deleted.")


command = Command("delete downloads and Stores that nobody uses", _declare, _run)
