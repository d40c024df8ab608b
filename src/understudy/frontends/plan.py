"""`understudy plan`: where every byte would go and how fast that should be. Loads no weights of the model."""

from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from . import opening
from .config_file import names_options
from .live import Live
from .model import resolve
from .options import METHOD, OUTPUT, PLACEMENT, declare, placement, placement_of_many
from .parser import Command, Parser
from .show import to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    parser.add_argument(
        "--config", type=Path, metavar="DIR|FILE.toml",
        help="the directory of a config.json, in the place of MODEL: no weights are needed; or a TOML file of options",
    )  # fmt: skip
    parser.config_is_of_model = True
    parser.add_argument(
        "--for",
        dest="machine",
        metavar="MACHINE",
        help="a machine to plan for in the place of this one: cuda:memory=24GB,link=25GB/s,host=64GB or"
        " cpu:memory=16GB,disk=3.5GB/s (also: disk=, bandwidth=)",
    )
    group = parser.add_argument_group("a conversation")
    group.add_argument(
        "--chat", metavar="turns=20,prompt=64,reply=192", help="what a conversation takes, and what is given up in which order"
    )
    group.add_argument(
        "--fit", choices=("context", "speed", "memory"),
        help="with --chat, what to hold: the conversation on this --memory (default), the speed of drafting, or the least memory",
    )  # fmt: skip
    group.add_argument(
        "--draft-head", metavar="KIND:HEAD", help="with --chat: a trained head that may draft in the place of the copy"
    )
    declare(parser, PLACEMENT, METHOD, OUTPUT)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.config is not None and names_options(args.config, of_model=True):
        # Its options have been read.
        args.config = None
    live = Live(args.quiet)
    if args.chat is not None:
        return _plan_chat(args, model, live)
    if wrong := [flag for flag, value in (("--fit", args.fit), ("--draft-head", args.draft_head)) if value is not None]:
        raise UsageError(f"{wrong[0]} is for --chat: give that too, such as --chat turns=20,prompt=64,reply=192.")
    plan = opening.llm().plan_only(model, config=args.config, machine=args.machine, **placement(args))
    live.clear()
    print(to_json(plan.to_dict()) if args.json else "\n".join(plan.lines()))
    return 0


def _plan_chat(args: Namespace, model: str | None, live: Live) -> int:
    """The same for a whole conversation. Arithmetic is measured on this machine, once; of another, --for says all."""
    import os

    from ..chat_plan import chat_for
    from ..options import Options
    from ..plan.conversation import Conversation
    from ..plan.other_machine import OtherMachine
    from ..plan.rounds import Arithmetic

    if args.config is not None and model is not None:
        raise UsageError("Give MODEL or --config, not both.")
    conversation = Conversation.parse(args.chat, "--chat")
    other = None if args.machine is None else OtherMachine.parse(args.machine)
    options = Options.of(placement_of_many(args), os.environ)
    if other is None:
        from ..yardstick import measured

        live.draw("measuring this machine's arithmetic, once ...")
        arithmetic = measured(options.cache)
    else:
        arithmetic = Arithmetic.of_bandwidth(other.bandwidth)
    asked = conversation, args.fit or "context", args.draft_head or ""
    chat = chat_for(args.config or model, asked, options, arithmetic, other, config_alone=args.config is not None)
    live.clear()
    print(to_json(chat.to_dict()) if args.json else "\n".join(chat.lines()))
    return 0


command = Command("the placement and the predicted speed; loads no weights", _declare, _run)
