"""Options of `serve` and `batch` for more than one model on more than one machine, and what is asked of Ray before it starts."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..plan.sizes import parse_size
from .options import count, placement_for_clients
from .parser import Parser

if TYPE_CHECKING:
    from ..cluster.connection import ReplicaShare
    from ..plan.placement import Plan

MISSING = "needs Ray, which is not installed: pip install 'understudy[ray]'."
# Options that mean nothing without the one that asks for replicas, by their names.
ADDITIONS = ("ray_address", "replica_cpus", "max_replicas", "session_affinity")


def declare_replicas(parser: Parser) -> Any:
    """Add the options that both commands have. Returns their group."""
    group = parser.add_argument_group("several machines (Ray)")
    group.add_argument("--replicas", type=count, metavar="N", help="models side by side, each as --memory and all else say")
    group.add_argument(
        "--ray-address", metavar="HOST:PORT", help="the Ray cluster they run on; auto: this machine's (default: a new one, here)"
    )
    group.add_argument(
        "--replica-cpus", type=count, metavar="N",
        help="processors of each (default: an equal share of this machine, or a whole machine of the cluster)",
    )  # fmt: skip
    return group


def check_replicas(args: Namespace, asks: str, asked: bool, replicas: int) -> None:
    """Refuse what replicas cannot do, or what is for them alone. `asks`: the option that asks for them."""
    if not asked:
        names = [name for name in ADDITIONS if getattr(args, name, None)]
        if names:
            raise UsageError(f"--{names[0].replace('_', '-')} is for {asks}, which was not given.")
        return
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"{asks} {MISSING}")
    if args.devices is not None:
        raise UsageError(f"--devices is for one process: leave it out with {asks}, or give each replica one --device.")
    if args.memory is None:
        raise UsageError(f"{asks} needs --memory SIZE, for each of them: replicas may share a machine.")
    if args.host_memory is None and args.device == "cuda":
        raise UsageError(f"{asks} with --device cuda needs --host-memory SIZE, for each of them: replicas may share a machine.")
    if getattr(args, "max_replicas", None) is not None and args.max_replicas < replicas:
        raise UsageError(f"--max-replicas must be at least --replicas, {replicas}, got {args.max_replicas}.")


def elsewhere(path: str | Path) -> str:
    """A model or a file as a replica finds it, which runs in another place: the whole path of what is here."""
    return str(Path(path).absolute()) if Path(path).exists() else str(path)


def options_of_replicas(args: Namespace) -> dict[str, Any]:
    """What the user said of each model, as keywords of LLM."""
    given = placement_for_clients(args)
    if given.get("generation_config") not in (None, "auto", "none"):
        given["generation_config"] = Path(given["generation_config"])
    return {name: value.absolute() if isinstance(value, Path) else value for name, value in given.items()}


def planned(model: str | None, options: dict[str, Any]) -> Plan:
    """The plan of each replica: what it says no to is refused here, in one line, before any of them starts."""
    from ..llm import LLM

    return LLM.plan_only(model, **options)


def cluster(args: Namespace, replicas: int, asks: str) -> AbstractContextManager[ReplicaShare]:
    """The cluster that the options name, connected while it is entered."""
    from ..cluster.connection import ReplicaShare, connected

    graphical = args.device == "cuda"
    memory = args.host_memory if graphical else args.memory
    place = ReplicaShare(args.replica_cpus or 0, parse_size(memory), int(graphical))
    return connected(args.ray_address, replicas, place, asks)
