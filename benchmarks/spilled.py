"""A long text in a budget made for a short one: the built-in model with more positions, in a cgroup whose limit is the budget.

    python benchmarks/spilled.py [--tokens 32000] [--context 32768] [--made-for 4096] [--work DIR]

The budget is the smallest for `--made-for` tokens of context without spilling, with what loading kernels takes beside it. A text of
`--tokens` tokens and 64 more is generated in it with a `--context` that spills, and again with enough memory and no spilling: both
must be the same. Prints a table with processor seconds, since a machine may be busy. Needs root and cgroups of version 1."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from understudy import demo

GROUPS = Path("/sys/fs/cgroup/memory")
NEW = 64
POSITIONS = 40960
# Kernels that are on disk, when they are loaded: some processes hold so much more than a plan of a fresh one says.
KERNELS = 40 << 20


def model_with_positions(work: Path) -> Path:
    """The built-in model with POSITIONS positions."""
    place = work / "model"
    if not place.exists():
        shutil.copytree(demo.path(), place)
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}))
    return place


def prompt_of(model: Path, tokens: int) -> Path:
    """A file of Python's own sources with so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    sources = sorted(Path(argparse.__file__).parent.glob("[a-d]*.py"))
    ids = tokenizer("".join(path.read_text() for path in sources)[: 8 * tokens])["input_ids"][:tokens]
    file = model.parent / "prompt.txt"
    file.write_text(tokenizer.decode(ids))
    return file


def command(model: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "understudy", *words[:1], str(model), *words[1:], "--json"]


def answer(words: list[str], group: Path | None = None) -> tuple[dict[str, object], float]:
    """The JSON that a command prints, and its processor seconds; inside `group`."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    before = os.times()
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=enter, check=False)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--made-for", type=int, default=4096)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "understudy-spilled")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = model_with_positions(args.work)
    prompt = prompt_of(model, args.tokens)
    # Prepares the model and compiles kernels.
    answer([*command(model, "run", "def f("), "--max-new-tokens", "2", "--context", str(args.context), "--spill", "1024"])
    short = answer([*command(model, "plan"), "--context", str(args.made_for), "--spill", "none"])[0]
    budget = int(str(short["smallest_budget"])) + KERNELS
    text = ["--prompt-file", str(prompt), "--context", str(args.context), "--max-new-tokens", str(NEW), "--temperature", "0"]
    group = GROUPS / "understudy-spilled"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(budget))
    (group / "memory.max_usage_in_bytes").write_text("0")
    spilled = answer([*command(model, "run"), *text, "--ignore-eos", "--memory", str(budget)], group)
    peak = int((group / "memory.max_usage_in_bytes").read_text())
    stays = answer([*command(model, "run"), *text, "--ignore-eos", "--spill", "none"])
    same = spilled[0]["token_ids"] == stays[0]["token_ids"]
    print(f"budget for {args.made_for} tokens: {budget >> 20} MiB; most in the cgroup: {peak >> 20} MiB; same text: {same}\n")
    print("| keys and values | latest in memory | context | KV cache | processor s | first token s | tok/s | tokens a pass |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (found, seconds) in (("spill", spilled), ("stay", stays)):
        stats: dict[str, float] = found["stats"]  # type: ignore[assignment]
        plan: dict[str, dict[str, int]] = stats["plan"]  # type: ignore[assignment]
        held = plan.get("spill", "all")
        cells = (held, args.context, f"{plan['items']['KV cache'] >> 20} MiB", f"{seconds:.0f}", f"{stats['ttft_seconds']:.0f}")
        print(f"| {name} | {' | '.join(map(str, cells))} | {stats['tokens_per_second']:.2f} | {stats['mean_accepted']:.1f} |")
    group.rmdir()
    if not same or peak > budget:
        raise SystemExit("the text differs, or the budget was not held")


if __name__ == "__main__":
    main()
