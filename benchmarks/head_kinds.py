"""Kinds of draft heads, trained on the same tokens of the same texts: what each gives a pass, beside the papers' order.

    python -m understudy.demo.corpus --output python.jsonl
    python benchmarks/head_kinds.py --data python.jsonl --output heads --tokens 256000

Prints a table in Markdown. What is done is kept: a run that was killed goes on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from understudy.heads.files import CONFIG
from understudy.scaling.cells import Accepted
from understudy.scaling.run import Scale, ScaleOrder
from understudy.training.order import Order
from understudy.training.run import train

# By kind, in the order that the papers find: what `--head` takes for it.
KINDS = {
    "medusa": "medusa:heads=5",
    "clover": "clover:heads=5",
    "clover2": "clover2:heads=5",
    "eagle": "eagle:depth=1",
}
# Kinds that read the same hidden states share what is kept of them.
DUMPS = {"medusa": "dump", "eagle": "dump", "clover": "dump-before-norm", "clover2": "dump-before-norm"}
# Extra tokens of a pass (beyond the first), as a multiple of Medusa's: Clover's paper (arXiv 2405.00263) has 1.50 to 1.76.
PAPER = {"medusa": "1", "clover": "1.5 to 1.8", "clover2": "more than Clover", "eagle": "a little less than Clover-2"}


def say(stage: str, done: float, total: float) -> None:
    """Print notes, and nothing of what is under way."""
    if not total:
        print(stage, flush=True)


def trained(kind: str, given: argparse.Namespace) -> Path:
    """The head of one kind; trained now if it is not there yet."""
    place: Path = given.output / kind
    if not (place / CONFIG).exists():
        print(f"training {KINDS[kind]}", flush=True)
        order = Order(
            given.model, KINDS[kind], tuple(given.data), place, given.output / DUMPS[kind], tokens=given.tokens,
            measured=given.measured, seed=given.seed, context=given.context, batch_tokens=given.batch_tokens, rate=given.rate,
        )  # fmt: skip
        train(order, say)
    return place


def table(found: Sequence[Accepted]) -> list[str]:
    """The lines of the table. Extra tokens are told as multiples of Medusa's too."""
    worth = {one.cell.kind: one for one in found}
    medusa = worth["medusa"].tokens_per_pass - 1
    lines = ["| head | tokens a pass | extra, x Medusa's | by the papers | right at depth 1, 2, ... |", "|---|---|---|---|---|"]
    for kind, spec in KINDS.items():
        one = worth[kind]
        chances = ", ".join(f"{share:.0%}" for share in one.positions)
        times = (one.tokens_per_pass - 1) / max(medusa, 1e-9)
        lines.append(f"| `{spec}` | {one.tokens_per_pass:.3f} | {times:.2f} | {PAPER[kind]} | {chances} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Kinds of draft heads, trained on the same tokens.")
    parser.add_argument("--model", help="a checkpoint or Store (default: the built-in model)")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=256_000)
    parser.add_argument("--measured", type=int, default=8192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.0, help="peak learning rate (default: the paper's, for this width)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    heads = tuple(trained(kind, given) for kind in KINDS)
    options = {"context": given.context}
    study = given.output / "study"
    order = ScaleOrder(given.model, study, tuple(given.data), heads=heads, seed=given.seed, batches=(), options=options)
    print("\n".join(table(Scale(order, say).run().found)))


if __name__ == "__main__":
    main()
