"""The rows as a table for people, and the verdict on the tokens."""

from collections.abc import Sequence

from ...plan.sizes import format_size
from ..show import aligned, rate
from .rows import Bench, Row, times

_HEAD = ("method", "T", "tok/s", "x none", "tok/pass", "levels", "per pass", "link", "of peak", "limit", "reached",
         "draft", "wait", "compute", "rest", "first token", "memory")  # fmt: skip


def table(bench: Bench) -> list[str]:
    """The lines of the table, then the verdict."""
    cells = [_HEAD, *(_cells(row, bench.rows) for row in bench.rows)]
    if any(row.resident for row in bench.rows):
        predicted = ["-" if row.predicted is None else f"{row.predicted:.2f}" for row in bench.rows]
        cells = [(*line[:3], cell, *line[3:]) for line, cell in zip(cells, ("predicted", *predicted), strict=True)]
    lines = aligned(cells)
    peaks = sorted(row.link_peak for row in bench.rows)
    measured = f"{rate(peaks[0])} to {rate(peaks[-1])}"
    lines += ["", f"link peak, measured after each row: {measured}; limit = tok/pass x link peak / per pass"]
    if bench.reference is not None:
        lines.append(f"transformers in memory, greedy: {bench.reference}")
    lines += [f"DIFFERENT: {line}" for line in bench.differences]
    if not bench.differences:
        several = "plans" if any(row.resident for row in bench.rows) else "methods"
        lines.append(f"tokens: IDENTICAL over {len({row.name for row in bench.rows})} {several}")
    return lines


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    faster = times(row, rows)
    limit = row.limit
    streams = row.bytes_per_pass > 0
    return (
        row.name,
        f"{row.temperature:g}",
        f"{row.tokens_per_second:.2f}",
        f"{faster:.2f}" if faster is not None else "-",
        f"{row.tokens_per_pass:.2f}",
        f"{row.levels_per_pass:.1f}" if row.levels_per_pass else "-",
        f"{row.bytes_per_pass / 1e6:.1f} MB" if streams else "-",
        rate(row.link_bytes_per_second) if streams else "-",
        f"{row.link_bytes_per_second / row.link_peak:.0%}" if streams else "-",
        f"{limit:.2f}" if limit is not None else "-",
        f"{row.tokens_per_second / limit:.0%}" if limit is not None else "-",
        *(
            f"{seconds / max(row.decode_seconds, 1e-9):.0%}"
            for seconds in (row.draft_seconds, row.wait_seconds, row.compute_seconds, row.rest_seconds)
        ),
        f"{row.ttft_seconds:.2f} s",
        format_size(row.peak_memory_bytes),
    )
