"""What `gpu_check` says of its figures: do the texts agree, the table, and what was wanted beside what was reached."""

from collections.abc import Callable, Sequence
from typing import Any

from gpu_rows import (
    BEST,
    BEST_SAMPLED,
    DELTA,
    LONG,
    OFFLOAD,
    PAPERS,
    PAPERS_SAMPLED,
    PLAIN,
    PLAIN_SAMPLED,
    RAW,
    ROWS8,
    Run,
)

Row = dict[str, Any]


def comparable(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that must write the same text, the longest text first: those of one temperature and one prompt."""
    groups: dict[tuple[float, bool], list[Row]] = {}
    for row in rows:
        if "token_ids" in row and row["run"]["load"]["method"] != "accelerate":
            groups.setdefault((row["run"]["temperature"], row["run"]["long"]), []).append(row)
    return [sorted(group, key=lambda row: -len(row["token_ids"])) for group in groups.values()]


def parts(row: Row, other: Row) -> bool:
    """Whether two texts part before the shorter one ends."""
    count = min(len(row["token_ids"]), len(other["token_ids"]))
    return bool(row["token_ids"][:count] != other["token_ids"][:count])


def disagreement(rows: Sequence[Row]) -> list[str]:
    """Rows whose texts part from the plain text, or after its end from the longest of those that do not."""
    found = []
    for group in comparable(rows):
        plain = next((row for row in group if row["run"]["load"]["method"] == "none"), group[0])
        longest = next(row for row in group if not parts(row, plain))
        for row in group:
            against = plain if parts(row, plain) else longest
            if parts(row, against):
                found.append(f"{row['run']['name']} does not write what {against['run']['name']} writes")
    return found


def identity(rows: Sequence[Row]) -> float | None:
    """The share of texts that are those of all others; None where there are no two to compare."""
    count = sum(len(group) for group in comparable(rows) if len(group) > 1)
    return 1 - len(disagreement(rows)) / count if count else None


HEAD = (
    "", "tok/s", "x plain", "tokens per pass", "GB per pass", "link GB/s", "of its peak", "of its limit",
    "draft / compute / wait s", "VRAM GB",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    plain = {row["run"]["temperature"]: row.get("tokens_per_second") for row in rows if row["run"]["short"].startswith("plain")}
    for row in rows:
        name = row["run"]["name"]
        if "error" in row:
            lines.append(f"| {name} | {row['error']} |{' |' * (len(HEAD) - 2)}")
            continue
        base, rate, limit = plain.get(row["run"]["temperature"]), row["tokens_per_second"], row.get("limit_tokens_per_second")
        if row["run"]["long"]:
            cells = [f"first token {row['ttft_seconds']:.2f} s", "", ""]
        else:
            cells = [f"{rate:.2f}", f"{rate / base:.1f}" if base else "", f"{row['mean_accepted']:.1f}"]
        if "streamed" in row:
            link = row["link_bytes_per_second"]
            cells += [f"{row['streamed'] / 1e9:.2f}", f"{link / 1e9:.1f}", f"{link / row['link_peak']:.0%}"]
            spent = " / ".join(f"{row[f'{what}_seconds']:.2f}" for what in ("draft", "compute", "wait"))
        else:
            cells += [""] * 3
            spent = ""
        limited = limit and not row["run"]["long"]
        cells += [f"{rate / limit:.0%}" if limited else "", spent, f"{row['peak_memory_bytes'] / 1e9:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate(row: Row) -> float:
    return float(row["tokens_per_second"])


def sweeps(row: Row) -> float:
    return float(row["ttft_seconds"] * row["link_peak"] / row["streamed"])


def level(row: Row) -> float:
    return float(row["levels"]["widths"][8]["ratio"])


# What, relation, wanted, the rows it takes, the figure. A row's own name stands for itself, "best" for the fastest drafted one.
Goal = tuple[str, str, float, tuple[Run | float, ...], Callable[..., float]]
GOALS: tuple[Goal, ...] = (
    ("draft level at width 8 against bytes/bandwidth", "<=", 1.5, (BEST,), level),
    ("pass of 64 nodes against a pass of 1", "<=", 1.1, (RAW,), lambda a: float(a["passes"]["ratio"])),
    ("first token of a long prompt, in sweeps", "<=", 1.3, (LONG,), sweeps),
    ("plain against its limit", ">=", 0.95, (PLAIN,), lambda a: rate(a) / a["limit_tokens_per_second"]),
    ("link during a plain pass against its peak", ">=", 0.95, (PLAIN,), lambda a: a["link_bytes_per_second"] / a["link_peak"]),
    ("delta against raw, drafted, no residents", ">=", 1.5, (DELTA, RAW), lambda a, b: rate(a) / rate(b)),
    ("drafted (best) against the paper's method, greedy", ">=", 3.0, (0.0, PAPERS), lambda a, b: rate(a) / rate(b)),
    ("drafted (best) against the paper's method, T=0.6", ">=", 3.0, (0.6, PAPERS_SAMPLED), lambda a, b: rate(a) / rate(b)),
    ("drafted (best) against plain, greedy", ">=", 40, (0.0, PLAIN), lambda a, b: rate(a) / rate(b)),
    ("drafted (best) against plain, T=0.6", ">=", 20, (0.6, PLAIN_SAMPLED), lambda a, b: rate(a) / rate(b)),
    ("drafted, raw, against its limit A B / b", ">=", 0.6, (RAW,), lambda a: rate(a) / a["limit_tokens_per_second"]),
    ("8 requests together against one", ">=", 5.0, (ROWS8, BEST), lambda a, b: rate(a) / rate(b)),
    ("plain against accelerate", ">=", 1.5, (PLAIN, OFFLOAD), lambda a, b: rate(a) / rate(b)),
    ("host memory against the Store", "<=", 1.05, (PLAIN,), lambda a: a["host_bytes"] / a["store_bytes"]),
    ("peak VRAM off the plan by", "<=", 0.03, (BEST,), lambda a: abs(a["device_bytes"] / a["planned_bytes"] - 1)),
)  # fmt: skip
assert BEST_SAMPLED.temperature == PLAIN_SAMPLED.temperature == 0.6


def row_of(wanted: Run | float, rows: Sequence[Row]) -> Row:
    """The row of a run; of a temperature, the fastest drafted one of a single request."""
    if isinstance(wanted, Run):
        return next((row for row in rows if row["run"]["short"] == wanted.short), {"error": "not run"})
    drafted = [
        row
        for row in rows
        if row["run"]["temperature"] == wanted
        and row["run"]["load"]["method"] not in ("none", "accelerate", PAPERS.load.method)
        and not row["run"]["short"].startswith("paper")
        and row["run"]["load"]["rows"] == 1
        and not row["run"]["long"]
        and "tokens_per_second" in row
    ]
    return max(drafted, key=rate, default={"error": "not run"})


def goals(rows: Sequence[Row]) -> list[Row]:
    """What is wanted, what was reached (None where it was not measured, with why), and which part of what is wanted that is."""
    found = []
    for what, relation, wanted, runs, figure in GOALS:
        used = [row_of(run, rows) for run in runs]
        names = [run.name if isinstance(run, Run) else "drafted" for run in runs]
        missing = [f"{name}: {row['error']}" for name, row in zip(names, used, strict=True) if "error" in row]
        reached, why = None, missing[0] if missing else ""
        if not missing:
            try:
                reached = figure(*used)
            except (ZeroDivisionError, TypeError):
                why = "nothing was streamed"
            except KeyError as absent:
                why = f"{absent.args[0]} was not measured"
        found.append(judged(what, relation, wanted, reached, why))
    alike = identity(rows)
    found.append(judged("texts that are the same by all methods", ">=", 1.0, alike, "" if alike is not None else "not run"))
    return found


def judged(what: str, relation: str, wanted: float, reached: float | None, why: str) -> Row:
    met, share = False, None
    if reached is not None:
        met = reached >= wanted if relation == ">=" else reached <= wanted
        share = reached / wanted if relation == ">=" else wanted / reached if reached else None
    return {"what": what, "wanted": f"{relation} {wanted:g}", "reached": reached, "met": met, "share": share, "why": why}


def goal_lines(found: Sequence[Row]) -> str:
    lines = ["| | wanted | reached | | of what is wanted |", "|---|---|---|---|---|"]
    for goal in found:
        if goal["reached"] is None:
            lines.append(f"| {goal['what']} | {goal['wanted']} | | {goal['why']} | |")
            continue
        share = "" if goal["share"] is None else f"{goal['share']:.0%}"
        met = "met" if goal["met"] else "**missed**"
        lines.append(f"| {goal['what']} | {goal['wanted']} | {goal['reached']:.2f} | {met} | {share} |")
    return "\n".join(lines)
