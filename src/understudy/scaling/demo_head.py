"""Trains the head of the built-in model on the sources that the model learned from, and writes the head's card.

    python -m understudy.scaling.demo_head --output DIR [--head eagle:depth=1] [--every 5] [--epochs 4]

A run that was killed goes on with the same command."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from ..demo.corpus import write_records
from ..heads import HeadConfig
from ..heads.files import config_of
from ..training.order import Order
from ..training.run import TRAINING, train
from .cells import Accepted
from .run import Scale, ScaleOrder

CARD = "CARD.md"
# Tokens of a text's longest piece, of a step, and those apart that the loss is measured on.
CONTEXT = 256
BATCH_TOKENS = 512
MEASURED = 16384


def card(config: HeadConfig, told: dict[str, Any], found: Accepted, size: int, order: ScaleOrder) -> str:
    """The head's card: what it is, what it learned from, and what it is worth."""
    chances = ", ".join(f"{share:.1%}" for share in found.positions)
    layers = f", {config.layers} decoder layer{'s' if config.layers > 1 else ''}" if config.layers else ""
    learned = f"`{told['head']}`, {told['tokens']:,} tokens, seed {told['seed']}, steps of {BATCH_TOKENS} tokens"
    return f"""# The head of the demo model

A draft head of kind `{config.kind}`{layers} ({size / 1e6:.2f} MB) for the built-in model.
`python -m understudy.scaling.demo_head` makes it; `docs/heads.md` says what such heads are.

- **Data**: the sources of Python {platform.python_version()}'s standard library that the model itself learned from: no tests, no
  generated tables, and none of the files that were held out there. Their licence is the Python Software Foundation License.
- **Training**: {learned};
  the best weights by the loss on sources that were kept apart ({told["loss"]:.4f}).
- **Worth**: chains of {order.levels} tokens at {found.judged:,} places of {order.prompts} texts that the model wrote greedily
  ({order.new_tokens} tokens each, after beginnings of {order.prompt_tokens} tokens that the head has not seen):
  a pass would give {found.tokens_per_pass:.2f} tokens. Chances by depth, where all before were right: {chances}.
"""


def say(stage: str, done: float, total: float) -> None:
    """Print notes, and nothing of what is under way."""
    if not total:
        print(stage, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the head of the built-in model.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="a folder of Python sources (default: this Python's own)")
    parser.add_argument("--head", default="eagle:depth=1", help="kind:key=value, as for `understudy train`")
    parser.add_argument("--every", type=int, default=5, help="learn from one in so many files (default 5)")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=0.003, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dump", type=Path, help="keep hidden states there")
    given = parser.parse_args()
    work = given.output.with_name(given.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    texts = work / "texts.jsonl"
    write_records(texts, given.corpus)
    lines = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join(lines[:: given.every]))
    if not (given.output / TRAINING).exists():
        train(
            Order(
                None, given.head, (texts,), given.output, given.dump or work / "dump", epochs=given.epochs, measured=MEASURED,
                seed=given.seed, context=CONTEXT, batch_tokens=BATCH_TOKENS, rate=given.rate,
            ),
            say,
        )  # fmt: skip
    order = ScaleOrder(None, work / "study", (texts,), heads=(given.output,), batches=(), options={"context": CONTEXT})
    [found] = Scale(order, say).run().found
    told = json.loads((given.output / TRAINING).read_text())
    size = sum(path.stat().st_size for path in given.output.glob("*.safetensors"))
    (given.output / CARD).write_text(card(config_of(given.output), told, found, size, order))


if __name__ == "__main__":
    main()
