"""A tiny target, texts for it, and trainings that take a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.training.order import Order
from understudy.training.run import Trained, train

TEXT = "".join(f"def f{i}(x):\n    return x * {i} + {i % 7}\n\n" for i in range(60))


def order(model: Path, tmp_path: Path, head: str = "eagle:depth=1", **changes: Any) -> Order:
    """An order for a head in `tmp_path`, on a text there."""
    (tmp_path / "text.txt").write_text(TEXT)
    whole = Order(
        str(model), head, (tmp_path / "text.txt",), tmp_path / "head",
        epochs=2, context=64, batch_tokens=256, options={"memory": "1GiB"},
    )  # fmt: skip
    return replace(whole, **changes)


def trained(wanted: Order) -> tuple[Trained, list[str]]:
    """The head of an order, and the notes that were told."""
    notes: list[str] = []

    def report(stage: str, done: float, total: float) -> None:
        if not total:
            notes.append(stage)

    return train(wanted, report), notes
