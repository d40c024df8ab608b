"""A study as a picture: the three laws, each with what was measured."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...scaling.laws import Law
from ...scaling.study import Study
from ..pictures import save

NAMES = {"T": "tokens of training (T)", "D": "decoder layers (D)"}


def plot(study: Study, path: Path) -> None:
    """Accepted tokens against tokens of training and against depth, and speed against the nodes of a text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    by_tokens, by_depth, by_width = figure.subplots(1, 3)
    for axes, name in ((by_tokens, "T"), (by_depth, "D")):
        _law(axes, name, [law for law in study.laws if law.of == name])
    _speeds(by_width, study)
    figure.suptitle(f"{Path(study.model).name}: {study.kinds} heads")
    save(figure, path)


def _law(axes: Any, name: str, laws: Sequence[Law]) -> None:
    """What was measured of one law as dots, and its lines."""
    for index, law in enumerate(laws):
        places, values = zip(*law.points, strict=True)
        colour = "black" if law.at.endswith("mean") else f"C{index}"
        axes.plot(places, values, "o", color=colour)
        axes.plot(places, [law.fit.at(math.log(place)) for place in places], "-", color=colour, label=f"{law.at}: {law.formula}")
    axes.set_xscale("log")
    shown = sorted({place for law in laws for place, _ in law.points})
    axes.set_xticks(shown, [f"{place:,}" for place in shown])
    axes.minorticks_off()
    axes.set_xlabel(NAMES[name])
    axes.set_ylabel("tokens of a pass")
    if laws:
        axes.legend(fontsize=8)


def _speeds(axes: Any, study: Study) -> None:
    """Speed of each batch by the nodes of a text; a dashed line stands where the law has the best number of them."""
    for index, batch in enumerate(sorted({speed.batch for speed in study.speeds})):
        best: dict[float, float] = {}
        for speed in study.speeds:
            if speed.batch == batch:
                best[speed.verified] = max(best.get(speed.verified, 0.0), speed.tokens_per_second)
        axes.plot(sorted(best), [best[nodes] for nodes in sorted(best)], "o-", color=f"C{index}", label=f"batch {batch}")
        if study.passes is not None:
            axes.axvline(study.passes.width(batch), color=f"C{index}", linestyle="dashed", linewidth=1)
    axes.set_xlabel("nodes of a text in a pass")
    axes.set_ylabel("tokens per second, all texts")
    if study.speeds:
        axes.legend(fontsize=8)
