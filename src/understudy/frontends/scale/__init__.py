"""`understudy scale`: how much a head gives by its depth and its training, how many nodes to verify, and which head to use."""

import importlib.util
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from ...errors import UsageError
from ..live import Live, Progress, resumable
from ..model import resolve
from ..options import OUTPUT, PLACEMENT, count, declare, not_negative, number, placement
from ..parser import Command, Parser
from ..pictures import check
from ..show import to_json

# What is written into the directory of a study.
RESULT = "result.json"
PICTURE = "scale.png"
SUFFIXES = {"k": 1_000, "m": 1_000_000}


def _count(text: str) -> int:
    """One or more, perhaps in thousands or millions: 500, 20k, 2M."""
    factor = SUFFIXES.get(text[-1:].lower(), 1)
    return count(text[:-1] if factor > 1 else text) * factor


def _counts(text: str) -> tuple[int, ...]:
    """An argument type: `1,2,4` or `20k,1M`."""
    found = tuple(_count(part.strip()) for part in text.split(",") if part.strip())
    if not found:
        raise ArgumentTypeError(f"takes numbers with commas between, such as 1,2,4, not {text!r}")
    return found


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="keeps heads and records; a killed run goes on there"
    )
    group.add_argument(
        "--data", required=True, nargs="+", type=Path, metavar="FILE", help="texts, or conversations in .jsonl files, one a line"
    )
    group.add_argument("--head", metavar="KIND", help="the kind of heads to train (default eagle)")
    group.add_argument("--depths", type=_counts, metavar="N,N", help="decoder layers (default 1,2,3,4)")
    group.add_argument("--budgets", type=_counts, metavar="N,N", help="tokens to learn from (default 20k,40k,80k)")
    group.add_argument("--heads", nargs="+", type=Path, metavar="DIR", help="measure these heads, and train none")
    group.add_argument("--dump", type=Path, metavar="DIR", help="keep hidden states there for other studies (default: in -o)")
    group.add_argument("--seed", type=not_negative, metavar="N", help="of training (default 0)")
    group.add_argument("--batch-tokens", type=count, metavar="N", help="tokens of a step of training (default 1024)")
    group.add_argument("--rate", type=number, metavar="R", help="peak learning rate (default: the paper's, for this width)")
    group.add_argument("--prompts", type=count, metavar="N", help="texts that the model writes to judge heads by (default 24)")
    group.add_argument("--prompt-tokens", type=count, metavar="N", help="tokens of the beginning of each (default 64)")
    group.add_argument("--new-tokens", type=count, metavar="N", help="tokens that it writes after that (default 96)")
    group.add_argument("--levels", type=count, metavar="N", help="levels of each draft (default 5)")
    group.add_argument("--batches", type=_counts, metavar="N,N", help="texts at once whose speed is measured (default 1,2,4)")
    group.add_argument("--widths", type=_counts, metavar="N,N", help="nodes of a level (default 1,2,4)")
    group.add_argument("--no-speed", action="store_true", help="measure no speeds: say nothing of the third law")
    declare(parser, PLACEMENT, OUTPUT)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help=f"draw it there (default: DIR/{PICTURE}, with matplotlib)")


# Options that say how heads are trained.
OF_TRAINING = ("head", "depths", "budgets", "dump", "seed", "batch_tokens", "rate")
GIVEN = (
    *OF_TRAINING,
    *("heads", "prompts", "prompt_tokens", "new_tokens", "levels", "batches", "widths"),
)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    picture = _picture(args)
    if wrong := [name for name in OF_TRAINING if args.heads and getattr(args, name) is not None]:
        flag = f"--{wrong[0].replace('_', '-')}"
        raise UsageError(f"{flag} is for heads that are trained, and --heads names some that are: leave one out.")
    if wrong := [name for name in ("batches", "widths") if args.no_speed and getattr(args, name) is not None]:
        raise UsageError(f"--{wrong[0]} is for speeds, and --no-speed leaves them out: leave one out.")
    from ...scaling.cells import write_record
    from ...scaling.run import Scale, ScaleOrder
    from .table import table

    live = Live(args.quiet)
    options = placement(args)
    options.pop("rows")
    given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    given |= {"batches": ()} if args.no_speed else {}
    if args.heads:
        given["heads"] = tuple(args.heads)
    order = ScaleOrder(model, args.output, tuple(args.data), options=options, **given)
    with resumable(live):
        study = Scale(order, Progress(live)).run()
    write_record(args.output / RESULT, study.to_dict())
    print(to_json(study.to_dict()) if args.json else "\n".join(table(study)))
    sys.stdout.flush()
    if picture is not None:
        from .plot import plot

        plot(study, picture)
    return 0


def _picture(args: Namespace) -> Path | None:
    """Where to draw; None: nowhere. Raises UnderstudyError, before anything is done, where it cannot be drawn as asked."""
    if args.plot is not None:
        check(args.plot)
        return Path(args.plot)
    return args.output / PICTURE if importlib.util.find_spec("matplotlib") else None


command = Command("how a head's worth grows with depth and training, and which one to use", _declare, _run)
