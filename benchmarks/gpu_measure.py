"""What `gpu_check` measures: one method in one process, with GPU memory capped by torch itself."""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """How much is done: k of the stand-in (parameters grow k*k times, 29: about 7 billion), memory cap, tokens of a prompt, of a
    text, of plain text, of the long prompt."""

    widen: int = 29
    memory: int = 8 * GIB
    prompt: int = 256
    tokens: int = 256
    plain_tokens: int = 8
    long: int = 2000
    seconds: float = 560.0
    device: str = "cuda"


FAKE = Size(widen=1, memory=GIB, prompt=16, tokens=5, plain_tokens=3, long=70, device="fake")
SUBSTITUTE, PAPER = "substitute", "substitute:width=6,depth=48"


@dataclass(frozen=True)
class Run:
    """One row of the table. `long`: the long prompt, of which only the first tokens count."""

    name: str
    method: str
    codec: str = "raw"
    temperature: float = 0.0
    resident: str = "none"
    long: bool = False


PLAIN, OFFLOAD = Run("plain", "none"), Run("accelerate, CPU offload", "accelerate")
PAPERS = Run("paper: raw, fixed beam, no residents", PAPER)
BEST = Run("drafted, delta", SUBSTITUTE, "delta", resident="auto")
PLAIN_SAMPLED = Run("plain, T=0.6", "none", temperature=0.6)
BEST_SAMPLED = Run("drafted, delta, T=0.6", SUBSTITUTE, "delta", 0.6, "auto")
LONG = Run("drafted, raw, long prompt", SUBSTITUTE, long=True)
RUNS = (  # what matters most comes first: time may run out
    PLAIN, PAPERS, Run("drafted, raw", SUBSTITUTE, resident="auto"), BEST, PLAIN_SAMPLED, BEST_SAMPLED, LONG, OFFLOAD,
    Run("paper, T=0.6", PAPER, temperature=0.6), Run("drafted, raw, no residents", SUBSTITUTE),
    Run("drafted, delta, no residents", SUBSTITUTE, "delta"),
)  # fmt: skip
FAKE_RUNS = (PLAIN, replace(PAPERS, method="substitute:width=2,depth=3"), BEST, PLAIN_SAMPLED, BEST_SAMPLED, LONG, OFFLOAD)


def measure(run: Run, model: str, size: Size) -> dict[str, Any]:
    """One prompt read and continued, for the second time: the first compiles what has to be compiled."""
    import torch

    if size.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size.memory / total))
    if run.method == "accelerate":
        return accelerate(model, size)
    from understudy import LLM, SamplingParams

    plain = run.method == "none"
    length = size.long if run.long else size.prompt
    tokens = 4 if run.long else size.plain_tokens if plain else size.tokens
    options = {"method": run.method, "codec": run.codec, "resident": run.resident, "context": length + tokens, "rows": 1}
    with LLM(model, device=size.device, memory=size.memory, progress=report, **options) as llm:
        params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=run.temperature, seed=1)
        text = prompt(llm.tokenizer, length)
        llm.generate([text], replace(params, max_new_tokens=4))
        llm.engine.kept.clear()
        done = llm.generate([text], params)[0]
        stats = done.stats.to_dict()
        memory = held(llm)  # before anything else is measured there
        found = level(llm) if run == BEST else {}
        peak = llm.model.device.link_bytes_per_second(0.0)
    kept = ("tokens_per_second", "ttft_seconds", "mean_accepted", "rounds", "bytes_streamed", "link_bytes_per_second",
            "peak_memory_bytes", "draft_seconds", "wait_seconds", "compute_seconds", "drafted", "accepted",
            "limit_tokens_per_second")  # fmt: skip
    figures = {name: stats[name] for name in kept}
    plan = llm.plan
    planned = {"streamed": plan.streamed_bytes, "planned_bytes": plan.used, "link_peak": peak, "notes": list(plan.notes)}
    return {"token_ids": done.token_ids, **planned, **memory, **found, **figures}


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


def level(llm: Any, width: int = 6) -> dict[str, float]:
    """What a draft level of one row takes, padded from `width`, against reading its weights once at the speed of a copy there."""
    drafter = llm.engine.drafter
    padded = 1 << (width - 1).bit_length()
    drafter.warm((padded,), 60.0)
    taken = drafter.policy.pace.levels[padded]
    bound = llm.plan.draft_level_bytes / bandwidth(llm.model.device)
    graphs = len(drafter.search.graphs)
    return {"level_ms": 1e3 * taken, "level_bound_ms": 1e3 * bound, "level_ratio": taken / bound, "graphs": graphs}


def bandwidth(device: Any, most: int = 256 << 20) -> float:
    """Bytes per second that the device's memory reads and writes in a copy; the largest that there is room for beside a model."""
    import torch

    size = 1 << 20 if device.where == "cpu" else most
    try:
        source, into = (torch.zeros(size, dtype=torch.uint8, device=device.where) for _ in range(2))
    except torch.OutOfMemoryError:
        if size <= 16 << 20:
            raise
        return bandwidth(device, size // 2)
    best = float("inf")
    for _ in range(8):
        device.finish()
        began = time.perf_counter()
        into.copy_(source)
        device.finish()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def report(what: str, done: float, total: float) -> None:
    if not total:
        print(what, file=sys.stderr)


def accelerate(model: str, size: Size) -> dict[str, Any]:
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
