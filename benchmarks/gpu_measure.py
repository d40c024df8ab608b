"""What `gpu_check` measures of one load of the model: its rows, one after another, with GPU memory capped by torch itself."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_rows import GIB, HEAD, Run, Size

Row = dict[str, Any]
# Told of a row's short name and of figures of it, as soon as they are known.
Send = Callable[[str, Row], None]
KEPT = (
    "tokens_per_second", "ttft_seconds", "mean_accepted", "rounds", "bytes_streamed", "link_bytes_per_second", "decode_seconds",
    "peak_memory_bytes", "draft_seconds", "wait_seconds", "compute_seconds", "drafted", "accepted", "limit_tokens_per_second",
    "levels_per_round", "ahead_levels", "ahead_used", "ahead_dropped",
)  # fmt: skip
SUMMED = ("bytes_streamed", "draft_seconds", "wait_seconds", "compute_seconds", "drafted", "accepted")
# A row is measured so often, where that takes no longer than `Size.again_seconds`.
MOST_TIMES = 3
TOKENS_OF_LONG = 4


def measure(send: Send, runs: Sequence[Run], model: str, size: Size, profile: bool) -> None:
    """Every row of `runs`, which share a load."""
    import torch

    from gpu_place import head_of

    began = time.perf_counter()
    if size.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size.memory / total))
    load = runs[0].load
    if load.method == "accelerate":
        send(runs[0].short, accelerate(model, size))
        return
    from understudy import LLM

    method = load.method.replace(HEAD, str(head_of(Path(model))))
    options = {"method": method, "codec": load.codec, "resident": load.resident, "rows": load.rows}
    context = max(length_of(run, size) + tokens_of(run, size) for run in runs)
    with LLM(model, device=size.device, memory=size.memory, context=context, progress=report, **options) as llm:
        loaded = time.perf_counter() - began
        peak = llm.model.device.link_bytes_per_second(0.0)
        for run in runs:
            figures = written(llm, run, size)
            # before anything else is measured there
            memory = held(llm) if run == runs[0] else {}
            send(run.short, {**planned(llm), **memory, **figures, "link_peak": peak, "load_seconds": loaded})
        for run in runs:
            more(llm, run, profile, send)


def more(llm: Any, run: Run, profile: bool, send: Send) -> None:
    """What is measured besides texts. What fails there takes nothing else with it."""
    import gpu_compile
    import gpu_passes
    from understudy.errors import Caught

    kinds = {
        "levels": gpu_passes.levels, "passes": gpu_passes.passes, "links": gpu_passes.links, "compiled": gpu_compile.compared,
    }  # fmt: skip
    work = {kind: kinds[kind] for kind in run.more}
    if profile and run.more:
        from gpu_profile import profiled

        work["profile"] = lambda llm: profiled(llm, run.more)
    for kind, find in work.items():
        with Caught() as trouble:
            send(run.short, {kind: find(llm)})
        if trouble.error is not None:
            send(run.short, {f"{kind}_error": f"{type(trouble.error).__name__}: {trouble.error}"})


def length_of(run: Run, size: Size) -> int:
    return size.long if run.long else size.prompt


def tokens_of(run: Run, size: Size) -> int:
    return TOKENS_OF_LONG if run.long else size.plain_tokens if run.load.method == "none" else size.tokens


def written(llm: Any, run: Run, size: Size) -> Row:
    """Prompts read and continued: once to compile and to record what has to be, then measured; the median by its speed of those
    in which nothing more was compiled or recorded."""
    from understudy import SamplingParams

    length, tokens, rows = length_of(run, size), tokens_of(run, size), run.load.rows
    text = prompt(llm.tokenizer, length + rows - 1)
    prompts = [text[i : i + length] for i in range(rows)]
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=run.temperature, seed=1)
    few = 2 if run.load.method == "none" or run.long else min(tokens, size.warm_tokens)
    began = time.perf_counter()
    llm.generate(prompts, replace(params, max_new_tokens=few))
    warm = time.perf_counter() - began
    found: list[tuple[Row, Any]] = []
    began = time.perf_counter()
    expected = 0.0
    while not found or (len(found) < MOST_TIMES and expected < size.again_seconds):
        llm.engine.kept.clear()
        with passes_of(llm) as each_pass, first_uses(llm) as first:
            done = llm.generate(prompts, params)
        figures = together([each.stats.to_dict() for each in done])
        found.append(({**figures, "passes of text": each_pass, "first_uses": list(first)}, done))
        expected = (1 + 1 / len(found)) * (time.perf_counter() - began)
    by = "ttft_seconds" if run.long else "tokens_per_second"
    # what compiled or recorded something tells less, unless all did
    telling = [each for each in found if not each[0]["first_uses"]] or found
    figures, done = sorted(telling, key=lambda each: each[0][by])[len(telling) // 2]
    spread = [each[0][by] for each in found]
    texts = {"token_ids": done[0].token_ids, "texts": [each.token_ids for each in done]}
    return {**figures, **texts, "warm_seconds": warm, "measured": spread}


@contextmanager
def first_uses(llm: Any) -> Iterator[list[str]]:
    """The kernels that Triton loads or compiles inside, since they were not used before, by name, and levels that are recorded."""
    from triton import knobs

    seen: list[str] = []
    before, search = knobs.runtime.jit_post_compile_hook, getattr(llm.engine.drafter, "search", None)
    captured = getattr(search, "captured", 0)
    knobs.runtime.jit_post_compile_hook = lambda **given: seen.append(given["fn"].name)
    try:
        yield seen
    finally:
        knobs.runtime.jit_post_compile_hook = before
        seen += ["a level"] * (getattr(search, "captured", 0) - captured)


@contextmanager
def passes_of(llm: Any) -> Iterator[list[tuple[int, float, float]]]:
    """Of each pass inside: its nodes, and the milliseconds of the draft before it and of the pass itself."""
    clock, seen = llm.engine.clock, []
    count = clock.count

    def noting(rows: int, nodes: int, draft: float, verify: float) -> None:
        seen.append((nodes, round(1e3 * draft, 1), round(1e3 * verify, 1)))
        count(rows, nodes, draft, verify)

    clock.count = noting
    try:
        yield seen
    finally:
        del clock.count


def together(stats: list[Row]) -> Row:
    """The figures of requests that ran together: of one request, its own."""
    figures = {name: stats[0][name] for name in KEPT}
    if len(stats) == 1:
        return figures
    seconds = max(each["decode_seconds"] for each in stats)
    busy = sum(each["stream_seconds"] for each in stats)
    figures |= {name: sum(each[name] for each in stats) for name in SUMMED}
    figures["tokens_per_second"] = sum(each["tokens_per_second"] * each["decode_seconds"] for each in stats) / seconds
    figures["link_bytes_per_second"] = figures["bytes_streamed"] / busy if busy else 0.0
    figures["mean_accepted"] = statistics.mean(each["mean_accepted"] for each in stats)
    figures["rounds"] = max(each["rounds"] for each in stats)
    return figures | {"limit_tokens_per_second": None, "decode_seconds": seconds}


def planned(llm: Any) -> Row:
    plan = llm.plan
    return {"streamed": plan.streamed_bytes, "planned_bytes": plan.used, "notes": list(plan.notes)}


def prompt(tokenizer: Any, length: int) -> list[int]:
    """`length` tokens of the benchmark's texts, one after another, again and again."""
    import prompts as texts

    once = [token for text in texts.TEXTS for token in tokenizer.encode(text)]
    return (once * (1 + length // len(once)))[:length]


def held(llm: Any) -> dict[str, int]:
    """Bytes that the host holds for the device, those of the Store, and those taken of the device's memory: torch keeps what it
    once took, and the driver's own count too, so nobody else may use the device meanwhile."""
    free, total = llm.model.device.memory()
    tier = llm.model.ring.tier if llm.model.ring is not None else None
    files = [path.stat().st_size for path in llm.store.path.iterdir() if path.is_file()]
    return {"host_bytes": getattr(tier, "host_bytes", 0), "store_bytes": sum(files), "device_bytes": total - free}


def report(what: str, done: float, total: float) -> None:
    if not total:
        print(what, file=sys.stderr, flush=True)


def accelerate(model: str, size: Size) -> Row:
    """Hugging Face's own offloading: as many layers on the GPU as the cap allows, the others in host memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import peers

    on_gpu = size.device == "cuda"
    places = {0: size.memory - 2 * GIB, "cpu": 10**12} if on_gpu else {"cpu": 10**12}
    stock = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, device_map="auto", max_memory=places
    ).eval()
    text = prompt(AutoTokenizer.from_pretrained(model), size.prompt)
    figures = peers.decode(stock, text, size.plain_tokens, device="cuda" if on_gpu else "cpu")
    peak = int(torch.cuda.max_memory_reserved()) if on_gpu else 0
    return {**figures, "mean_accepted": 1.0, "peak_memory_bytes": peak}
