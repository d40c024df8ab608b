"""Figures and tables of benchmarks/real.py: from what was run to what is printed."""

from collections.abc import Iterable, Sequence
from typing import Any

# Positions whose acceptance is told apart.
POSITIONS = 12
# How many of the draft's best tokens are looked at for the target's.
HITS = (1, 2, 4, 8, 16)
Row = dict[str, Any]


def figures(runs: Sequence[Row]) -> Row:
    """The figures of some texts together: sums over all of them, so that long texts weigh more."""
    drafts = [draft for run in runs for draft in run["drafts"]]
    drafted = sum(draft["drafted"] for draft in drafts)
    accepted = sum(draft["accepted"] for draft in drafts)
    tokens = sum(run["decode_tokens"] for run in runs)
    ranks = [rank for draft in drafts for rank in draft["ranks"]]
    return {
        "texts": len(runs),
        "new_tokens": sum(len(run["token_ids"]) for run in runs),
        "passes": len(drafts),
        "tokens_per_pass": 1 + accepted / len(drafts) if drafts else None,
        "drafted": drafted,
        "accepted": accepted,
        "accepted_of_drafted": accepted / drafted if drafted else None,
        "nodes_per_pass": 1 + drafted / len(drafts) if drafts else None,
        "levels_per_pass": sum(run["levels"] for run in runs) / len(drafts) if drafts else None,
        "accepted_at": by_position(drafts),
        "hits": {k: sum(rank < k for rank in ranks) / len(ranks) for k in HITS} if ranks else None,
        "tokens_per_second": _share(tokens, sum(run["decode_seconds"] for run in runs)),
        "fixed_tokens_per_second": _share(tokens, sum(run["fixed_seconds"] for run in runs)),
        "ttft_seconds": _share(sum(run["ttft_seconds"] for run in runs), len(runs)),
        "gb_per_pass": _share(sum(run["bytes_streamed"] for run in runs) / 1e9, sum(run["rounds"] + 1 for run in runs)),
        "peak_gb": max((run["peak_memory_bytes"] for run in runs), default=0) / 1e9,
    }


def by_position(drafts: Iterable[Row]) -> list[float | None]:
    """For each of the first positions: of the drafts that were right before it and have a node there, the share that is right."""
    tried = [0] * POSITIONS
    right = [0] * POSITIONS
    for draft in drafts:
        for place in range(min(draft["accepted"] + (not draft["ended"]), POSITIONS)):
            tried[place] += 1
            right[place] += place < draft["accepted"]
    return [_share(good, count) for good, count in zip(right, tried, strict=True)]


def same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Are two texts the same as far as the shorter goes?"""
    length = min(len(one), len(other))
    return list(one[:length]) == list(other[:length])


def identical(runs: Sequence[Row], plain: Sequence[Row]) -> float | None:
    """The share of the texts that are plain decoding's; None where none was decoded plainly."""
    texts = {(run["name"], run["temperature"]): run["token_ids"] for run in plain}
    compared = [
        same(run["token_ids"], texts[run["name"], run["temperature"]])
        for run in runs
        if (run["name"], run["temperature"]) in texts
    ]
    return _share(sum(compared), len(compared))


def summary(settings: Row, runs: Sequence[Row]) -> list[Row]:
    """One row for each method, codec, temperature and category, and one for all categories together ("all": its tokens per pass and
    speeds are means over the categories, each weighing the same)."""
    rows = []
    for method, codec in settings["methods"]:
        for temperature in settings["temperatures"]:
            own = [r for r in runs if (r["method"], r["codec"], r["temperature"]) == (method, codec, temperature)]
            plain = [r for r in runs if r["method"] == "none"]
            head = {"method": method, "codec": codec, "temperature": temperature}
            here = []
            for category in settings["categories"]:
                of_it = [run for run in own if run["category"] == category]
                if of_it:
                    here.append(head | {"category": category, "same": identical(of_it, plain)} | figures(of_it))
            if here:
                total = figures(own) | {"same": identical(own, plain)}
                rows += [*here, head | {"category": "all"} | total | _means(here)]
    return rows


def _means(rows: Sequence[Row]) -> Row:
    """The means over categories of the figures that are compared."""
    names = ("tokens_per_pass", "tokens_per_second", "fixed_tokens_per_second", "accepted_of_drafted")
    found = {}
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = _share(sum(values), len(values))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each method, codec and temperature, a line for each category."""
    base = {
        (row["temperature"], row["category"]): row["tokens_per_second"] for row in rows if (row["method"], row["codec"])
        == (rows[0]["method"], rows[0]["codec"])
    }  # fmt: skip
    lines: list[str] = []
    last = None
    for row in rows:
        if last != (row["method"], row["codec"], row["temperature"]):
            last = (row["method"], row["codec"], row["temperature"])
            lines += ["", f"**{row['method']}, `{row['codec']}`, T = {row['temperature']:g}**", "", HEADER, RULE]
        ratio = _over(row["tokens_per_second"], base.get((row["temperature"], row["category"])))
        cells = [
            row["category"],
            _text(row["tokens_per_pass"], ".2f"),
            _text(row["accepted_of_drafted"], ".0%"),
            _text(row["nodes_per_pass"], ".0f"),
            _text(row["levels_per_pass"], ".1f"),
            " ".join("-" if share is None else f"{100 * share:.0f}" for share in row["accepted_at"]),
            " ".join(f"{100 * share:.0f}" for share in row["hits"].values()) if row["hits"] else "",
            _text(row["tokens_per_second"], ".2f"),
            _text(ratio, ".1f"),
            _text(row["fixed_tokens_per_second"], ".2f"),
            _text(row["ttft_seconds"], ".1f"),
            _text(row["same"], ".0%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


NAMES = (
    "category", "tokens per pass", "accepted of drafted", "nodes", "levels", "accepted at 1, 2, ... (%)",
    f"target's token in the first {', '.join(map(str, HITS))} (%)", "tok/s", "x first", "tok/s, fixed costs", "TTFT s", "same text",
)  # fmt: skip
HEADER = "| " + " | ".join(NAMES) + " |"
RULE = "|" + "---|" * len(NAMES)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
