"""A study as people read it: heads, laws beside the paper's, speeds, and what to use."""

from collections.abc import Sequence

from ...scaling.cells import Accepted
from ...scaling.fits import Fit
from ...scaling.laws import PAPER, PAPER_WIDTH, Law, Speed
from ...scaling.study import Study
from ..show import aligned


def table(study: Study) -> list[str]:
    """The lines of the whole."""
    lines = [f"{study.model}: accepted tokens of a pass, by decoder layers (D) and tokens of training (T)", ""]
    lines += _heads(study)
    if deeper := _deeper(study.found):
        lines += ["", "More than the shallowest head of the same training, on the same texts (+- a standard error over texts):", ""]
        lines += deeper
    if study.laws:
        lines += ["", "Laws (ln is the natural logarithm; the paper's are Scylla's, arXiv 2505.07858, T in billions there):", ""]
        lines += _laws(study.laws)
    if study.speeds:
        lines += ["", "Speed, by texts that run together and nodes of a level:", "", *_speeds(study.speeds)]
    lines += ["", *_widths(study), *study.notes, "", *_advice(study)]
    return lines


def _heads(study: Study) -> list[str]:
    budgets = sorted({one.cell.tokens for one in study.found})
    kinds = sorted({(one.cell.kind, one.cell.depth) for one in study.found})
    by_place = {one.cell.place: f"{one.tokens_per_pass:.3f}{_error(one.error)}" for one in study.found}
    cells = [["head", "D", *(f"T = {tokens:,}" if tokens else "T not told" for tokens in budgets)]]
    for kind, depth in kinds:
        cells.append([kind, str(depth or "-"), *(by_place.get((kind, depth, tokens), "") for tokens in budgets)])
    return aligned(cells)


def _error(value: float | None) -> str:
    return "" if value is None else f" +-{value:.3f}"


def _deeper(found: Sequence[Accepted]) -> list[str]:
    """What each head gives more than the one with fewest layers of its kind and training; nothing where errors are not known."""
    cells = [["head", "D", "T", "more"]]
    for one in sorted(found, key=lambda one: (one.cell.kind, one.cell.tokens, one.cell.depth)):
        alike = [other for other in found if (other.cell.kind, other.cell.tokens) == (one.cell.kind, one.cell.tokens)]
        more, error = one.over(min(alike, key=lambda other: other.cell.depth))
        if error:
            cells.append([one.cell.kind, str(one.cell.depth), f"{one.cell.tokens:,}", f"{more:+.3f}{_error(error)}"])
    return aligned(cells) if len(cells) > 1 else []


def _laws(laws: Sequence[Law]) -> list[str]:
    cells = [["of", "at", "a", "95%", "b", "95%", "R2", "points"]]
    for law in laws:
        cells.append([f"ln {law.of}", law.at, *_numbers(law.fit), _share(law.fit.r2), str(law.fit.points)])
    for name in sorted({law.of for law in laws}, reverse=True):
        slope, constant, share = PAPER[name]
        cells.append([f"ln {name}", "paper", f"{slope:g}", "", f"{constant:g}", "", _share(share), ""])
    return aligned(cells)


def _numbers(fit: Fit) -> list[str]:
    """Each coefficient and half of its interval."""
    margins = fit.margins or (None,) * len(fit.coefficients)
    return [text for pair in zip(fit.coefficients, margins, strict=True) for text in (f"{pair[0]:.3f}", _margin(pair[1]))]


def _margin(value: float | None) -> str:
    return "-" if value is None else f"+-{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _speeds(speeds: Sequence[Speed]) -> list[str]:
    cells = [["batch", "D", "width", "nodes a text", "tokens a pass", "tok/s", "ms a pass", "waiting", "drafting"]]
    for speed in speeds:
        passes = max(speed.passes, 1)
        whole = speed.busy_seconds + speed.wait_seconds + speed.draft_seconds
        cells.append(
            [
                str(speed.batch),
                str(speed.depth or "-"),
                str(speed.width or "-"),
                f"{speed.verified:.1f}",
                f"{speed.tokens_per_pass:.2f}",
                f"{speed.tokens_per_second:.1f}",
                f"{1000 * whole / passes:.0f}",
                f"{speed.wait_seconds / whole:.0%}",
                f"{speed.draft_seconds / whole:.0%}",
            ]
        )
    return aligned(cells)


def _widths(study: Study) -> list[str]:
    """The third law: what a pass takes, the best number of nodes, and the speed of that."""
    lines = []
    if (law := study.passes) is not None:
        each = f"b ({1000 * law.request:.2f} + {1000 * law.node:.3f} k)"
        link = f", or {1000 * law.link:.1f} ms while the link brings the weights" if law.linked else ""
        lines += [
            f"A pass of b texts with k nodes each takes {1000 * law.whole:.1f} + {each} ms{link} (R2 {_share(law.fit.r2)}).",
            f"Its nodes take as long as what every pass brings at k = {_sum(law.terms, '/ b')};",
            f"the paper's model and machine: about {_sum(PAPER_WIDTH, '/ b')}.",
        ]
    if (fit := study.throughput) is not None:
        lines.append(f"tok/s of the best width = {_sum(fit.coefficients, 'log2 b')} (R2 {_share(fit.r2)}, {fit.points} points).")
    return lines


def _sum(numbers: Sequence[float], term: str) -> str:
    """Such as `80.0 / b + 4.0`."""
    first, second = numbers
    return f"{first:.1f} {term} {'-' if second < 0 else '+'} {abs(second):.1f}"


def _advice(study: Study) -> list[str]:
    use = study.advice
    lines = [f"Use {use.head} (D = {use.depth}, T = {use.tokens:,}): {use.why}."]
    if use.widths:
        widths = ", ".join(f"{nodes} at batch {batch}" for batch, nodes in use.widths.items())
        lines.append(f"Nodes of a text in a pass: {widths}.")
    return lines
