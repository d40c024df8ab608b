"""Everything that needs a GPU, checked and measured in one command, in under ten minutes, with the Python at hand.

    python benchmarks/gpu_check.py --json gpu.json        (or: make gpu-check)
    python benchmarks/gpu_check.py --fake                 the same code on a simulated device and a tiny model, without a GPU

Exactness first: each kernel against the CPU's, bits where bits are promised; then tiny models, where drafted text must be plain
text, and where it is not, the first token that differs is shown with how close the exact model's choice was there. Then speed: a
stand-in is made here, and methods run one after another, each in a process of its own whose GPU memory is capped. Ends with
one table. The status is 1 if anything was not exact."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch", "transformers", "safetensors", "tokenizers", "jinja2", "numpy", "numba", "greenlet", "psutil", "xxhash", "triton",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is done: k of the stand-in (parameters grow k*k times, 29: about 7 billion), memory cap, tokens."""

    widen: int = 29
    memory: int = 8 << 30
    tokens: int = 128
    plain_tokens: int = 8
    seconds: float = 560.0
    context: int = 512
    device: str = "cuda"


FAKE = Size(widen=1, memory=1 << 30, tokens=5, plain_tokens=3, context=128, device="fake")
SUBSTITUTE, PAPER = "substitute", "substitute:width=6,depth=48"


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    name: str
    method: str
    codec: str = "raw"
    temperature: float = 0.0
    resident: str = "none"


RUNS = (
    Run("plain", "none"),
    Run("accelerate, CPU offload", "accelerate"),
    Run("paper: raw, 6 x 48, no residents", PAPER),
    Run("drafted, raw, no residents", SUBSTITUTE),
    Run("drafted, raw", SUBSTITUTE, resident="auto"),
    Run("drafted, delta, no residents", SUBSTITUTE, "delta"),
    Run("drafted, delta", SUBSTITUTE, "delta", resident="auto"),
    Run("plain, T=0.6", "none", temperature=0.6),
    Run("paper, T=0.6", PAPER, temperature=0.6),
    Run("drafted, delta, T=0.6", SUBSTITUTE, "delta", 0.6, "auto"),
)
FAKE_RUNS = (
    RUNS[0],
    RUNS[1],
    replace(RUNS[2], name="paper: raw, 2 x 3", method="substitute:width=2,depth=3"),
    RUNS[6],
    RUNS[7],
    RUNS[9],
)


def missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def prepare_path(fake: bool) -> None:
    """Nothing need be installed: the package and its tests' helpers are imported from where they lie."""
    for folder in (ROOT, ROOT / "src", ROOT / "benchmarks"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])
    if fake:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        from understudy.devices import DEVICES

        DEVICES["fake"] = "tests.fake_device:open_fake"


def measure(run: Run, model: str, size: Size) -> dict[str, Any]:
    """In a process of its own: one prompt read and continued, GPU memory capped by torch itself."""
    import torch

    import prompts as texts

    if size.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size.memory / total))
    if run.method == "accelerate":
        return accelerate(model, size)
    from understudy import LLM, SamplingParams

    tokens = size.plain_tokens if run.method == "none" else size.tokens
    budget = size.memory
    options = {"method": run.method, "codec": run.codec, "resident": run.resident, "context": size.context, "rows": 1}
    with LLM(model, device=size.device, memory=budget, progress=report, **options) as llm:
        prompt = texts.prompts(llm.tokenizer, 16 if size.device == "fake" else 64, 1)[0]
        params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=run.temperature, seed=1)
        llm.generate([prompt], replace(params, max_new_tokens=4))  # compiles what has to be compiled
        llm.engine.kept.clear()
        done = llm.generate([prompt], params)[0]
        found = level(llm) if run.method == SUBSTITUTE and not run.temperature else {}
    stats = done.stats.to_dict()
    kept = ("tokens_per_second", "ttft_seconds", "mean_accepted", "rounds", "bytes_streamed", "link_bytes_per_second",
            "peak_memory_bytes", "draft_seconds", "wait_seconds", "compute_seconds", "drafted", "accepted")  # fmt: skip
    figures = {name: stats[name] for name in kept}
    return {"token_ids": done.token_ids, "streamed": llm.plan.streamed, **found, **figures}


def level(llm: Any, width: int = 6) -> dict[str, float]:
    """What a draft level of one row takes, padded from `width`, against reading its weights once at the speed of a copy there."""
    import torch

    grower, device = llm.engine.drafter.grower, llm.model.device
    padded = 1 << (width - 1).bit_length()
    grower.warm((padded,), 60.0)
    taken = grower.pace.levels[padded]
    size = 1 << 20 if device.where == "cpu" else 1 << 30
    source, into = (torch.zeros(size, dtype=torch.uint8, device=device.where) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        device.finish()
        began = time.perf_counter()
        into.copy_(source)
        device.finish()
        best = min(best, time.perf_counter() - began)
    bound = llm.plan.level / (2 * size / best)  # a copy reads and writes
    return {"level_ms": 1e3 * taken, "level_bound_ms": 1e3 * bound, "level_ratio": taken / bound, "graphs": len(grower.graphs)}


def report(what: str, done: float, total: float) -> None:
    if not total:
        print(what, file=sys.stderr)


def accelerate(model: str, size: Size) -> dict[str, Any]:
    """Hugging Face's own offloading: as many layers on the GPU as the cap allows, the others in host memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import peers
    import prompts as texts

    on_gpu = size.device == "cuda"
    places = {0: size.memory - 2 * (1 << 30), "cpu": 10**12} if on_gpu else {"cpu": 10**12}
    stock = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, device_map="auto", max_memory=places
    ).eval()
    prompt = texts.prompts(AutoTokenizer.from_pretrained(model), 64 if on_gpu else 16, 1)[0]
    figures = peers.decode(stock, prompt, size.plain_tokens, device="cuda" if on_gpu else "cpu")
    peak = int(torch.cuda.max_memory_reserved()) if on_gpu else 0
    return {**figures, "mean_accepted": 1.0, "peak_memory_bytes": peak}


def speed(size: Size, runs: tuple[Run, ...], deadline: float, folder: Path) -> list[dict[str, Any]]:
    """Every run in a process of its own, as long as there is time; what was left out says so."""
    model = folder / "standin"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "standin.py"),
        "--output",
        str(model),
        "--widen",
        str(size.widen),
    ]
    if size.device == "fake":  # the demo model would take too long
        from tests.tiny import save

        save(folder / "source", "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1)
        command += ["--source", str(folder / "source")]
    subprocess.run(command, check=True, timeout=max(1.0, deadline - time.monotonic()))
    os.environ["UNDERSTUDY_CACHE"] = str(folder / "cache")
    rows = []
    for run in runs:
        if run.method == "accelerate" and importlib.util.find_spec("accelerate") is None:
            rows.append({"run": asdict(run), "error": "accelerate is not installed"})
            continue
        rows.append({"run": asdict(run), **one(run, model, size, deadline - time.monotonic())})
        print(f"{run.name}: {rows[-1].get('tokens_per_second') or rows[-1]['error']}", file=sys.stderr, flush=True)
    return rows


def one(run: Run, model: Path, size: Size, seconds: float) -> dict[str, Any]:
    asked = json.dumps({"run": asdict(run), "size": asdict(size), "model": str(model)})
    command = [sys.executable, str(Path(__file__).resolve()), "--one", asked]
    if seconds < 5:
        return {"error": "no time was left"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": "it was not done in time"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def disagreement(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of one temperature whose texts part from the plain text."""
    found = []
    for row in rows:
        for plain in rows:
            same = row["run"]["temperature"] == plain["run"]["temperature"]
            if plain["run"]["method"] == "none" and same and "token_ids" in row and "token_ids" in plain:
                count = min(len(row["token_ids"]), len(plain["token_ids"]))
                if row["token_ids"][:count] != plain["token_ids"][:count] and row["run"]["method"] != "accelerate":
                    found.append(f"{row['run']['name']} does not write what {plain['run']['name']} writes")
    return found


def level_line(row: dict[str, Any]) -> str:
    """The draft level, for people."""
    how = f"{row['graphs']} graphs" if row["graphs"] else "no graphs"
    bound = f"bytes/bandwidth {row['level_bound_ms']:.3f} ms"
    return f"draft level at width 6 (padded to 8): {row['level_ms']:.3f} ms, {bound}, ratio {row['level_ratio']:.2f}, {how}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | tok/s | x plain | tokens per pass | GB per pass | link GB/s | VRAM GB |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = {row["run"]["temperature"]: row.get("tokens_per_second") for row in rows if row["run"]["method"] == "none"}
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['run']['name']} | {row['error']} | | | | | |")
            continue
        base = plain.get(row["run"]["temperature"])
        rate = row["tokens_per_second"]
        cells = [f"{rate:.2f}", f"{rate / base:.1f}" if base else "", f"{row['mean_accepted']:.1f}"]
        cells += (
            [f"{row['streamed'] / 1e9:.2f}", f"{row['link_bytes_per_second'] / 1e9:.1f}"]
            if "streamed" in row
            else ["", ""]
        )
        lines.append(f"| {row['run']['name']} | {' | '.join(cells)} | {row['peak_memory_bytes'] / 1e9:.2f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks and measures everything that needs a GPU.")
    parser.add_argument("--fake", action="store_true", help="on a simulated device and a tiny model")
    parser.add_argument("--widen", type=int, help="size of the stand-in; 29 is about 7 billion parameters")
    parser.add_argument("--memory", type=float, help="cap on GPU memory, in GiB (default 8)")
    parser.add_argument("--seconds", type=float, help="after which nothing new is begun (default 560)")
    parser.add_argument("--only", choices=("exact", "speed"), help="one half of it")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    began = time.monotonic()
    if lacking := missing():
        print(f"gpu_check: these packages are missing: {', '.join(lacking)}", file=sys.stderr)
        return 1
    if given.one:
        asked = json.loads(given.one)
        size = Size(**asked["size"])
        prepare_path(size.device == "fake")
        print(json.dumps(measure(Run(**asked["run"]), asked["model"], size)))
        return 0
    import torch

    if not given.fake and not torch.cuda.is_available():
        print(
            "gpu_check: there is no usable CUDA GPU here; --fake runs the same on a simulated device.", file=sys.stderr
        )
        return 1
    prepare_path(given.fake)
    size = FAKE if given.fake else Size()
    changes = {"widen": given.widen, "seconds": given.seconds, "memory": given.memory and int(given.memory * (1 << 30))}
    size = replace(size, **{name: value for name, value in changes.items() if value})
    return check(size, FAKE_RUNS if given.fake else RUNS, began, given)


def check(size: Size, runs: tuple[Run, ...], began: float, given: argparse.Namespace) -> int:
    results: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERSTUDY_CACHE"] = str(Path(folder) / "cache")
        if given.only != "speed":
            from gpu_exact import exactness  # only now: it needs what was found to be here

            for what, trouble in exactness(size.device):
                results[what] = trouble
                print(f"{'ok   ' if not trouble else 'WRONG'}  {what}{': ' + trouble if trouble else ''}", flush=True)
        if given.only != "exact":
            rows = speed(size, runs, began + size.seconds, Path(folder))
    wrong = [what for what, trouble in results.items() if trouble] + disagreement(rows)
    seconds = time.monotonic() - began
    if given.json:
        figures = {"size": asdict(size), "exactness": results, "rows": rows, "wrong": wrong, "seconds": seconds}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"\n{size.device}, {seconds:.0f} s. {'NOT EXACT: ' + '; '.join(wrong) if wrong else 'All that was run is exact.'}"
    )
    if rows:
        print(f"\n{table(rows)}")
    for row in rows:
        if "level_ms" in row:
            print(f"{row['run']['name']}: {level_line(row)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
