"""What `gpu_check` says of its figures: do the texts agree, the table, and what was wanted beside what was reached."""

from collections.abc import Callable
from typing import Any

from gpu_measure import BEST, BEST_SAMPLED, LONG, OFFLOAD, PAPERS, PLAIN, PLAIN_SAMPLED, Run

Row = dict[str, Any]


def disagreement(rows: list[Row]) -> list[str]:
    """Rows of one temperature whose texts part from the plain text."""
    found = []
    for row in rows:
        for plain in rows:
            alike = row["run"]["temperature"] == plain["run"]["temperature"] and row["run"]["long"] == plain["run"]["long"]
            if plain["run"]["method"] == "none" and alike and "token_ids" in row and "token_ids" in plain:
                count = min(len(row["token_ids"]), len(plain["token_ids"]))
                if row["token_ids"][:count] != plain["token_ids"][:count] and row["run"]["method"] != "accelerate":
                    found.append(f"{row['run']['name']} does not write what {plain['run']['name']} writes")
    return found


def level_line(row: Row) -> str:
    """The draft level, for people."""
    how = f"{row['graphs']} graphs" if row["graphs"] else "no graphs"
    bound = f"bytes/bandwidth {row['level_bound_ms']:.3f} ms"
    return f"draft level at width 6 (padded to 8): {row['level_ms']:.3f} ms, {bound}, ratio {row['level_ratio']:.2f}, {how}"


def table(rows: list[Row]) -> str:
    lines = [
        "| | tok/s | x plain | tokens per pass | GB per pass | link GB/s | of its peak | of its limit | VRAM GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {row["run"]["temperature"]: row.get("tokens_per_second") for row in rows if row["run"]["method"] == "none"}
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['run']['name']} | {row['error']} | | | | | | | |")
            continue
        base, rate, limit = (
            plain.get(row["run"]["temperature"]),
            row["tokens_per_second"],
            row.get("limit_tokens_per_second"),
        )
        cells = [f"{rate:.2f}", f"{rate / base:.1f}" if base else "", f"{row['mean_accepted']:.1f}"]
        if "streamed" in row:
            link = row["link_bytes_per_second"]
            cells += [f"{row['streamed'] / 1e9:.2f}", f"{link / 1e9:.1f}", f"{link / row['link_peak']:.0%}"]
        else:
            cells += [""] * 3
        cells += [f"{rate / limit:.0%}" if limit else "", f"{row['peak_memory_bytes'] / 1e9:.2f}"]
        lines.append(f"| {row['run']['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


GOALS: tuple[tuple[str, str, float, tuple[Run, ...], Callable[..., float]], ...] = (
    ("plain against accelerate", ">=", 1.5, (PLAIN, OFFLOAD), lambda a, b: _rate(a) / _rate(b)),
    ("link during a plain pass against its peak", ">=", 0.95, (PLAIN,), lambda a: a["link_bytes_per_second"] / a["link_peak"]),
    ("draft level at width 6 against bytes/bandwidth", "<=", 1.5, (BEST,), lambda a: a["level_ratio"]),
    ("drafted against the paper's method", ">=", 2.0, (BEST, PAPERS), lambda a, b: _rate(a) / _rate(b)),
    ("drafted against plain, greedy", ">=", 20, (BEST, PLAIN), lambda a, b: _rate(a) / _rate(b)),
    ("drafted against plain, T=0.6", ">=", 13, (BEST_SAMPLED, PLAIN_SAMPLED), lambda a, b: _rate(a) / _rate(b)),
    ("drafted against its limit A B / b", ">=", 0.8, (BEST,), lambda a: _rate(a) / a["limit_tokens_per_second"]),
    ("host memory against the Store", "<=", 1.05, (PLAIN,), lambda a: a["host_bytes"] / a["store_bytes"]),
    ("peak VRAM off the plan by", "<=", 0.03, (BEST,), lambda a: abs(a["device_bytes"] / a["planned_bytes"] - 1)),
    ("first token of a long prompt, in sweeps", "<=", 1.3, (LONG,), lambda a: a["ttft_seconds"] * a["link_peak"] / a["streamed"]),
)  # fmt: skip


def _rate(row: Row) -> float:
    return float(row["tokens_per_second"])


def goals(rows: list[Row]) -> list[Row]:
    """What is wanted, and what was reached (None where it was not measured, with why)."""
    found = []
    for what, relation, wanted, runs, figure in GOALS:
        used = [next((row for row in rows if row["run"]["name"] == run.name), {"error": "not run"}) for run in runs]
        missing = [f"{run.name}: {row['error']}" for run, row in zip(runs, used, strict=True) if "error" in row]
        reached, why = None, missing[0] if missing else ""
        if not missing:
            try:
                reached = figure(*used)
            except (ZeroDivisionError, TypeError):
                why = "nothing was streamed"
        met = reached is not None and (reached >= wanted if relation == ">=" else reached <= wanted)
        found.append({"what": what, "wanted": f"{relation} {wanted:g}", "reached": reached, "met": met, "why": why})
    return found


def goal_lines(found: list[Row]) -> str:
    lines = ["| | wanted | reached | |", "|---|---|---|---|"]
    for goal in found:
        measured = goal["reached"] is not None
        cells = (f"{goal['reached']:.2f}", "met" if goal["met"] else "**missed**") if measured else ("", goal["why"])
        lines.append(f"| {goal['what']} | {goal['wanted']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
