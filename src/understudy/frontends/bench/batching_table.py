"""Ways of batching as a table for people, and the verdict on the texts."""

from ...plan.sizes import format_size
from ..show import aligned
from .batching import Batched, BatchingBench

_HEAD = ("batching", "T", "rows", "tok/s", "x first", "identical", "tok/pass", "rows/pass", "passes", "padding", "grouped",
         "realign", "of time", "draft", "wait", "compute", "per pass", "memory")  # fmt: skip


def batching_table(bench: BatchingBench) -> list[str]:
    """The lines of the table, then the verdict."""
    lines = aligned([_HEAD, *(_cells(bench, line) for line in bench.lines)])
    asked = bench.asked
    shortest, longest = min(bench.prompt_lengths), max(bench.prompt_lengths)
    written = [params.max_new_tokens for params in asked.params(0.0)]
    lines += [
        "",
        f"{asked.requests} requests, prompts of {shortest} to {longest} tokens, answers of {min(written)} to {max(written)},"
        f" method {asked.method}",
    ]
    lines += [f"DIFFERENT: {line}" for line in bench.differences]
    if not bench.differences:
        lines.append(f"texts: IDENTICAL over {len(asked.ways)} ways of batching")
    return lines


def _cells(bench: BatchingBench, line: Batched) -> tuple[str, ...]:
    same, compared = bench.identical(line)
    first = bench.first(line.temperature)
    padded = line.rectangles > 0
    return (
        line.policy,
        f"{line.temperature:g}",
        f"{line.rows} of {line.pool}" if line.pool > line.rows else f"{line.rows}",
        f"{line.tokens_per_second:.2f}",
        f"{line.tokens_per_second / max(first.tokens_per_second, 1e-9):.2f}",
        f"{same} of {compared}",
        f"{line.tokens_per_pass:.2f}",
        f"{line.rows_per_pass:.2f}",
        f"{line.passes}",
        f"{line.padding_share:.0%}" if padded else "-",
        f"{line.grouped_share:.0%}" if padded else "-",
        f"{line.align_seconds:.2f} s" if padded else "-",
        f"{line.align_seconds / max(line.seconds, 1e-9):.1%}" if padded else "-",
        *(
            f"{seconds / max(line.seconds, 1e-9):.0%}"
            for seconds in (line.draft_seconds, line.wait_seconds, line.compute_seconds)
        ),
        f"{line.bytes_streamed / max(line.passes, 1) / 1e6:.1f} MB" if line.bytes_streamed else "-",
        format_size(line.peak_memory_bytes),
    )
