"""When everything fits in memory: plain decoding, the default and transformers' own `generate`, in turns, in one process.

    python benchmarks/resident.py MODEL --threads 2 --new-tokens 64 --rounds 3 --json out.json

Each round runs every method on each prompt, greedy, with the same threads, so that what disturbs the machine disturbs all of
them. Reading the prompt is timed apart. A ratio to transformers is the median over rounds and prompts of the ratio within a
round. `--start N` also times N starts of a process, from nothing to its first token, in turns with transformers' own."""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prompts

PEER = "transformers"
# What a process does to give one token with transformers alone.
START = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
ids = tokenizer(sys.argv[3], return_tensors="pt").input_ids
out = model.generate(ids, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(out[0, -1:]))
"""
TEXT = "The history of the Roman empire is a long one. It began as a small town beside a river, and"

# Tokens, seconds to the first token, seconds after it, and processor seconds after it.
Run = tuple[list[int], float, float, float]


class Times:
    """A streamer for `generate` that notes when the first token came: `put` is called with the prompt, then with each token."""

    def __init__(self) -> None:
        self.calls = 0
        self.first = (0.0, 0.0)

    def put(self, _: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.first = (time.perf_counter(), time.process_time())

    def end(self) -> None: ...


def ours(model: str, method: str) -> Callable[[list[int], int], Run]:
    """What generates with one method of Understudy."""
    from understudy import LLM, SamplingParams

    llm = LLM(model, method=method)
    if llm.plan.streamed_bytes:
        raise SystemExit(f"resident: {model} does not fit in memory here: {llm.plan.streamed_bytes} bytes stream")

    def run(prompt: list[int], count: int) -> Run:
        params = SamplingParams(max_new_tokens=count, temperature=0, ignore_eos=True)
        tokens: list[int] = []
        start, first = time.perf_counter(), (0.0, 0.0)
        for step in llm.stream(prompt, params):
            if not tokens:
                first = (time.perf_counter(), time.process_time())
            tokens += step.token_ids
        return tokens, first[0] - start, time.perf_counter() - first[0], time.process_time() - first[1]

    return run


def peer(model: str) -> Callable[[list[int], int], Run]:
    """What generates with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    stock: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    stock.generation_config.eos_token_id = None

    def run(prompt: list[int], count: int) -> Run:
        ids, times = torch.tensor([prompt]), Times()
        start = time.perf_counter()
        out = stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, streamer=times, pad_token_id=0
        )
        end = time.perf_counter() - times.first[0], time.process_time() - times.first[1]
        return out[0, len(prompt) :].tolist(), times.first[0] - start, *end

    return run


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method, round and prompt."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(given.threads)
    texts = prompts.prompts(AutoTokenizer.from_pretrained(given.model), given.prompt_tokens, given.prompts)
    runners = {method: ours(given.model, method) for method in given.methods.split(",")} | {PEER: peer(given.model)}
    for run in runners.values():
        run(texts[0], 8)
    rows = []
    for number in range(given.rounds):
        for text, prompt in enumerate(texts):
            for name, run in runners.items():
                tokens, first, seconds, processor = run(prompt, given.new_tokens)
                row = {"method": name, "round": number, "prompt": text, "token_ids": tokens, "ttft_seconds": first}
                row |= {"decode_seconds": seconds, "processor_seconds": processor, "threads": given.threads}
                rows.append(row)
                print(f"{number} {text} {name}: {(len(tokens) - 1) / seconds:.2f} tok/s", file=sys.stderr)
    return rows


def starts(given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds from the start of a process to its end after one token."""
    threads = str(given.threads)
    commands = {
        "understudy run": ["-m", "understudy", "run", given.model, TEXT, "--max-new-tokens", "1"],
        PEER: ["-c", START, given.model, threads, TEXT],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(given.start):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            taken[name].append(time.perf_counter() - start)
    return taken


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method the best speeds, and the ratios to transformers in the same round on the same prompt."""
    base = {(row["round"], row["prompt"]): row for row in rows if row["method"] == PEER}
    plain = {row["prompt"]: row["token_ids"] for row in rows if row["method"] == "none"}
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        pairs = [(row, base[row["round"], row["prompt"]]) for row in own]

        def ratio(name: str, pairs: list[Any] = pairs) -> float:
            return float(statistics.median(other[name] / row[name] for row, other in pairs))

        found.append(
            {
                "method": method,
                "tokens_per_second": max((len(row["token_ids"]) - 1) / row["decode_seconds"] for row in own),
                "median_tokens_per_second": statistics.median((len(r["token_ids"]) - 1) / r["decode_seconds"] for r in own),
                "tokens_per_processor_second": max((len(r["token_ids"]) - 1) / r["processor_seconds"] for r in own),
                "ttft_seconds": statistics.median(row["ttft_seconds"] for row in own),
                "ratio": ratio("decode_seconds"),
                "processor_ratio": ratio("processor_seconds"),
                "ttft_ratio": ratio("ttft_seconds"),
                "same_as_none": all(row["token_ids"] == plain.get(row["prompt"]) for row in own),
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | tok/s best | median | x transformers | by processor time | first token s | x transformers | text of none |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["method"], f"{row['tokens_per_second']:.1f}", f"{row['median_tokens_per_second']:.1f}"]
        cells += [f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}", f"{row['ttft_seconds']:.2f}"]
        cells += [f"{row['ttft_ratio']:.2f}", "yes" if row["same_as_none"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed beside transformers' generate where everything fits in memory.")
    parser.add_argument("model")
    parser.add_argument("--methods", default="none,substitute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=int, default=0, help="also time so many starts of a process")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.new_tokens < 2 or given.rounds < 1 or not 1 <= given.prompts <= len(prompts.TEXTS):
        parser.error(f"--new-tokens must be at least 2, --rounds at least 1, --prompts 1 to {len(prompts.TEXTS)}")
    return given


def main() -> None:
    given = arguments()
    warnings.simplefilter("ignore")
    rows = measure(given)
    found = summary(rows)
    print(table(found))
    started = starts(given) if given.start else {}
    for name, taken in started.items():
        print(f"start to first token, {name}: {min(taken):.2f} s at best, median {statistics.median(taken):.2f} s")
    if given.json:
        given.json.write_text(json.dumps({"summary": found, "rows": rows, "starts": started}, indent=1) + "\n")


if __name__ == "__main__":
    main()
