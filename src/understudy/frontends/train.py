"""`understudy train`: a small head that drafts for a model, trained on texts that the model has read."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from .live import Live, Progress, resumable
from .model import resolve
from .options import OUTPUT, PLACEMENT, count, declare, not_negative, number, placement
from .parser import Command, Parser
from .show import duration, to_json


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    declare(parser, PLACEMENT, OUTPUT)
    group = parser.add_argument_group("training")
    kinds = "eagle:depth=D, eagle3, clover2, clover or medusa; kind:key=value,..."
    group.add_argument("--head", required=True, metavar="KIND", help=kinds)
    group.add_argument(
        "--data", required=True, nargs="+", type=Path, metavar="FILE", help="texts, or conversations in .jsonl files, one a line"
    )
    group.add_argument(
        "--self", dest="own", action="store_true", help="learn from the model's own answers to the prompts of the data"
    )
    group.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="a new directory for the head")
    group.add_argument(
        "--start", type=Path, metavar="DIR", help="begin as the trained head there; --head may have more decoder layers"
    )
    group.add_argument("--dump", type=Path, metavar="DIR", help="keep hidden states there for other trainings on these texts")
    group.add_argument("--epochs", type=number, metavar="N", help="how often to learn from all texts (default 3)")
    group.add_argument("--tokens", type=count, metavar="N", help="end after so many tokens")
    group.add_argument("--minutes", type=number, metavar="N", help="end after so many minutes of training")
    group.add_argument("--draft-vocab", type=count, metavar="N", help="say only the N tokens that are most frequent in the texts")
    group.add_argument("--seed", type=not_negative, metavar="N", help="of initial values, order and noise (default 0)")
    group.add_argument("--batch-tokens", type=count, metavar="N", help="tokens of a step (default 2048)")
    group.add_argument("--rate", type=number, metavar="R", help="peak learning rate (default: the paper's, for this width)")


GIVEN = ("dump", "start", "epochs", "tokens", "minutes", "draft_vocab", "seed", "batch_tokens", "rate")


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    options = placement(args)
    del options["rows"]
    given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    if (context := options.pop("context", None)) is not None:
        given["context"] = context
    from ..training.order import Order
    from ..training.run import train

    live = Live(args.quiet)
    order = Order(model, args.head, tuple(args.data), args.output, own=args.own, options=options, **given)
    with resumable(live):
        trained = train(order, Progress(live))
    reached, worth = trained.reached, trained.worth
    live.say(f"{reached.tokens:,} tokens in {duration(reached.seconds)}, {reached.step:,} steps, loss {reached.best:.4f}")
    for line in worth.lines(args.head):
        live.say(line)
    live.say(f"The head is in {trained.path}.")
    if args.json:
        found = {"head": str(trained.path), "tokens": reached.tokens, "steps": reached.step, "seconds": reached.seconds}
        print(to_json({**found, "loss": reached.best, "measured": asdict(worth)}))
    return 0


command = Command("train a head that drafts for a model", _declare, _run)
