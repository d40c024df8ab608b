"""The result as a picture: what was reached, and the line above it that the link sets."""

from collections.abc import Sequence
from pathlib import Path

from ..pictures import save
from .rows import Bench, Row, times


def plot(bench: Bench, path: Path) -> None:
    """Bars of tokens per second, one group for each temperature, a line above each bar where the link's limit is."""
    from matplotlib.figure import Figure

    temperatures = sorted({row.temperature for row in bench.rows})
    methods = list(dict.fromkeys(row.name for row in bench.rows))
    width = 0.8 / len(methods)
    figure = Figure(figsize=(max(6.0, 1.6 * len(temperatures) * len(methods)), 4.5), layout="constrained")
    axes = figure.subplots()
    for row in bench.rows:
        place = temperatures.index(row.temperature) + (methods.index(row.name) - (len(methods) - 1) / 2) * width
        colour = f"C{methods.index(row.name)}"
        axes.bar(place, row.tokens_per_second, 0.9 * width, color=colour)
        if row.limit is not None:
            axes.hlines(row.limit, place - 0.45 * width, place + 0.45 * width, colors=colour, linestyles="dashed")
        axes.annotate(_label(row, bench.rows), (place, row.tokens_per_second), ha="center", va="bottom", fontsize=9)
    for index, method in enumerate(methods):
        axes.bar(0, 0, color=f"C{index}", label=method)
    axes.hlines([], 0, 0, colors="grey", linestyles="dashed", label="limit of the link")
    axes.set_xticks(range(len(temperatures)), [f"T = {t:g}" if t else "greedy" for t in temperatures])
    axes.set_ylabel("tokens per second")
    what = "plan" if any(row.resident for row in bench.rows) else "method"
    axes.set_title(f"{Path(bench.model).name}: the same tokens, by {what}")
    best = max(row.tokens_per_second for row in bench.rows)
    highest = max((min(row.limit, 2 * best) for row in bench.rows if row.limit is not None), default=best)
    # A limit far above the speeds that were reached must not flatten the bars.
    axes.set_ylim(0, 1.25 * max(best, highest) or 1)
    figure.legend(loc="outside right upper")
    save(figure, path)


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Tokens per second, times `none`, share of the limit."""
    parts = [f"{row.tokens_per_second:.1f}"]
    if (faster := times(row, rows)) is not None:
        parts.append(f"{faster:.1f}x")
    if row.limit is not None:
        parts.append(f"{row.tokens_per_second / row.limit:.0%} of limit")
    return "\n".join(parts)
