"""`understudy plan`: where every byte would go and how fast that should be. Loads no weights."""

from argparse import Namespace
from pathlib import Path

from .live import Live
from .model import resolve
from .options import METHOD, OUTPUT, PLACEMENT, declare, placement
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    parser.add_argument(
        "--config", type=Path, metavar="DIR", help="the directory of a config.json, in the place of MODEL: no weights are needed"
    )
    parser.add_argument(
        "--for",
        dest="machine",
        metavar="MACHINE",
        help="a machine to plan for in the place of this one: cuda:memory=24GB,link=25GB/s,host=64GB or"
        " cpu:memory=16GB,disk=3.5GB/s (also: disk=, bandwidth=)",
    )
    declare(parser, PLACEMENT, METHOD, OUTPUT)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    live = Live(args.quiet)
    from ..llm import LLM

    plan = LLM.plan_only(model, config=args.config, machine=args.machine, **placement(args))
    live.clear()
    print(to_json(plan.to_dict()) if args.json else "\n".join(plan.lines()))
    return 0


command = Command("the placement and the predicted speed; loads no weights", _declare, _run)
