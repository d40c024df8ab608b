"""Everything that needs a GPU, checked and measured in one command, in under ten minutes, with the Python at hand.

    python benchmarks/gpu_check.py --json gpu.json        (or: make gpu-check)
    python benchmarks/gpu_check.py --fake                 the same code on a simulated device and a tiny model, without a GPU

Exactness first: each kernel against the CPU's, bits where bits are promised; then tiny models, where drafted text must be plain
text, and where it is not, the first token that differs is shown with how close the exact model's choice was there. Then speed: a
stand-in is made here, and methods run one after another, each in a process of its own whose GPU memory is capped. Ends with
one table, and what was wanted beside what was reached. The status is 1 if anything was not exact."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_measure import FAKE, FAKE_RUNS, RUNS, Run, Size, measure
from gpu_table import disagreement, goal_lines, goals, level_line, table

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch", "transformers", "safetensors", "tokenizers", "jinja2", "numpy", "numba", "greenlet", "psutil", "xxhash", "triton",
)  # fmt: skip


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
        figures = {
            "size": asdict(size), "exactness": results, "rows": rows, "goals": goals(rows), "wrong": wrong, "seconds": seconds,
        }  # fmt: skip
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"\n{size.device}, {seconds:.0f} s. {'NOT EXACT: ' + '; '.join(wrong) if wrong else 'All that was run is exact.'}"
    )
    if rows:
        lines = [f"{row['run']['name']}: {level_line(row)}" for row in rows if "level_ms" in row]
        print("\n".join(["", table(rows), *lines, "", goal_lines(goals(rows))]))
    if size.device == "fake":
        print("\nOn a simulated device no speed or size means anything: only that all of it runs.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
