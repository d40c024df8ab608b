"""`understudy ls`: the models on this machine, what they take on disk, and which Stores belong to which."""

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..plan.sizes import format_size
from .options import JSON, declare
from .parser import Command, Parser
from .show import to_json

if TYPE_CHECKING:
    from ..inventory import KnownModel


def _declare(parser: Parser) -> None:
    declare(parser, (JSON,))


def _run(args: Namespace) -> int:
    from ..inventory import inventory
    from ..plan.machine import free_bytes
    from ..plan.remembered import cache_directory

    cache = cache_directory(os.environ)
    models = inventory(cache)
    if args.json:
        print(to_json({"cache": str(cache), "free": free_bytes(cache), "models": [model.to_dict() for model in models]}))
        return 0
    print("\n".join(_lines(models)))
    print(f"{format_size(free_bytes(cache))} are free where Stores are kept: {cache}")
    return 0


def _lines(models: Sequence["KnownModel"]) -> list[str]:
    """A line for each model, and one below it for each of its Stores."""
    lines = []
    for model in models:
        name = model.name or "Stores of unknown models"
        told = ["its checkpoint is not here" if model.kind == "gone" else model.kind, "in use" if model.used else ""]
        size = format_size(model.nbytes) if model.nbytes else ""
        lines.append(f"{size:>10}  {name} ({', '.join(filter(None, told))})" if model.name else f"{size:>10}  {name}")
        for store in model.stores:
            told = [store.recipe, f"stale: {store.trouble}" if store.trouble else "", "in use" if store.used else ""]
            lines.append(f"{format_size(store.nbytes):>10}    Store {store.path.name} ({', '.join(filter(None, told))})")
    stores = [store for model in models for store in model.stores]
    stale = sum(store.nbytes for store in stores if store.trouble)
    lines.append(
        f"{format_size(sum(model.nbytes for model in models) + sum(store.nbytes for store in stores)):>10}  in all"
        + (f", of which {format_size(stale)} is of no use any more (`understudy rm --stale` deletes it)" if stale else "")
    )
    return lines


command = Command("the models on this machine, and what they take on disk", _declare, _run)
