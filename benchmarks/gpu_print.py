"""The figures of `gpu_check` for people: the tables, what a row costs besides its tokens, levels, passes and profiles."""

from collections.abc import Sequence
from typing import Any

from gpu_table import goal_lines, table

Row = dict[str, Any]
NAME = 64


def printed(figures: Row) -> str:
    rows, wrong = figures["rows"], figures["wrong"]
    where = figures["machine"].get("gpu", figures["size"]["device"])
    verdict = f"NOT EXACT: {'; '.join(wrong)}" if wrong else "All that was run is exact."
    lines = [*figures_of(rows), "", f"{where}, {figures['seconds']:.0f} s. {verdict}"]
    lines += [f"Cut short: {why}" for why in figures["cut"]]
    if rows:
        lines += ["", table(rows), "", costs(rows), levels(rows), "", goal_lines(figures["goals"])]
    if figures["size"]["device"] == "fake":
        lines += ["", "On a simulated device no speed or size means anything: only that all of it runs."]
    return "\n".join(lines)


def figures_of(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        for kind, lines_of in SECTIONS:
            if kind in row:
                lines += [f"{row['run']['name']}: {kind}", *(f"  {line}" for line in lines_of(row[kind]))]
            if f"{kind}_error" in row:
                lines.append(f"{row['run']['name']}: {kind}: {row[f'{kind}_error']}")
        if "more_error" in row:
            lines.append(f"{row['run']['name']}: {row['more_error']}")
    return lines


def costs(rows: Sequence[Row]) -> str:
    """What rows cost besides the text that counts."""
    found = [
        f"{row['run']['short']} {row['load_seconds']:.1f} + {row['warm_seconds']:.1f}" for row in rows if "load_seconds" in row
    ]
    return f"Seconds of loading (once for rows that share it) + of the first text: {', '.join(found)}"


def levels(rows: Sequence[Row]) -> str:
    """How many levels passes waited for, and what became of those that were run beside passes."""
    found = []
    for row in rows:
        if row.get("levels_per_round"):
            made = row["ahead_used"] + row["ahead_dropped"]
            ahead = f" ({row['ahead_levels']} ahead, {row['ahead_used']} of {made} drafts used)" if made else ""
            found.append(f"{row['run']['short']} {row['levels_per_round']:.1f}{ahead}")
    return f"Draft levels that a pass waited for: {', '.join(found)}"


def text_lines(found: Sequence[tuple[int, float, float]]) -> list[str]:
    """Where the time of a text went, pass by pass."""
    return [f"{nodes} nodes: draft {draft:.1f} ms, pass {verify:.1f} ms" for nodes, draft, verify in found]


def level_lines(found: Row) -> list[str]:
    bound = f"bytes/bandwidth {found['bound_ms']:.3f} ms, {found['graphs']} graphs"
    return [bound, *(f"width {width}: {each['ms']:.3f} ms, {each['ratio']:.2f} x" for width, each in found["widths"].items())]


def compiled_lines(found: Row) -> list[str]:
    """A level with blocks of three kinds."""
    times = [f"{name} {found[f'{name}_ms']:.3f} ms" for name in ("fused", "stock", "compiled") if found[f"{name}_ms"] is not None]
    lines = [f"width {found['width']}: blocks {', '.join(times)}"] if times else []
    if "compile_seconds" in found:
        made = f"{found['graphs']} graphs, {found['breaks']} breaks, made in {found['compile_seconds']:.0f} s"
        lines.append(f"compiled: {made}, logits off by {found['off']:.1e}")
    return [*lines, *([f"compiled: left out, since {found['why']}"] if "why" in found else [])]


def pass_lines(found: Row) -> list[str]:
    lines = []
    for count, each in ((1, found["one"]), (found["nodes"], found["many"])):
        host = f"host {each['host_ms']:.1f}, {each['host_cpu_ms']:.1f} of it busy"
        took = f"{each['ms']:.1f} ms (device {each['device_ms']:.1f}, {host})"
        lines.append(f"pass of {count}: {took}")
    device = f", by the device's clock {found['device_ratio']:.2f}" if found["device_ratio"] else ""
    return [*lines, f"{found['nodes']} nodes against 1: {found['ratio']:.2f}{device}"]


def link_lines(found: Row) -> list[str]:
    return [f"pass of {count}: {link_words(each)}" for count, each in found.items()]


def link_words(found: Row) -> str:
    if "idle_share" not in found:
        return "nothing was streamed"
    idle = f"idle {found['idle_share']:.1%} ({found['idle_ms']:.2f} of {found['span_ms']:.1f} ms, {found['pauses']} pauses"
    rate = f"{found['bytes_per_second'] / 1e9:.1f} GB/s in {found['copies']} copies"
    return f"{idle}, the longest {found['longest_ms']:.2f} ms), {rate} while busy"


def profile_lines(found: Row) -> list[str]:
    lines = []
    for what, each in found.items():
        head = f"{what}: {each['kernels']:.0f} kernels, {each['kernel_ms']:.2f} ms, {each['kernel_idle_ms']:.2f} ms between them"
        if each.get("copies"):
            head += f"; {each['copies']:.0f} copies, {each['copy_ms']:.2f} ms, {each['copy_idle_ms']:.2f} ms between them"
        lines.append(head)
        for kind in ("top", "calls", "functions"):
            lines += [f"  {one['ms']:9.3f} ms {one['count']:8.1f} x  {one['name'][:NAME]}" for one in each.get(kind, ())]
    return lines


# What is measured besides texts, and its lines.
SECTIONS = (
    ("passes of text", text_lines), ("levels", level_lines), ("passes", pass_lines), ("links", link_lines),
    ("profile", profile_lines), ("compiled", compiled_lines),
)  # fmt: skip
