"""Real text: an instruct model on prompts of eleven categories, plain and drafted, greedy and sampled.

    python benchmarks/real.py MODEL --memory 2.2GiB --methods none/raw,none/delta,substitute/delta --plain-tokens 12
    python benchmarks/real.py MODEL --no-clock --methods substitute --json real.json

Each method and codec is a process of its own: with --memory, in a fresh memory cgroup with a cold page cache. The chat template is
applied, and a prompt's second turn follows the model's own answer to the first. Plain decoding may be given fewer tokens, since it
is slow (--plain-tokens); texts are compared as far as the shorter goes.

--no-clock: everything in memory (exact weights beside the 4-bit copy), and the drafter is told the seconds of --costs in place of
measured ones. Its trees, and so tokens per pass, are then the same in every run on any machine, however busy; tokens per second are
those of a machine with these costs.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import capped
import real_prompts
import real_table

Row = dict[str, Any]
WARM_UP = "Say hello."


def context_for(tokenizer: Any, given: argparse.Namespace) -> int:
    """Tokens that the longest conversation takes."""
    longest = 0
    for prompt in real_prompts.chosen(given.categories, given.prompts):
        text = "\n".join(prompt.messages)
        longest = max(longest, len(tokenizer.encode(text)) + len(prompt.turns) * (given.new_tokens + 64))
    return longest


def conversation(llm: Any, watched: Any, prompt: Any, params: Any, turns: int) -> list[Row]:
    """What became of each of the first `turns` turns of a prompt."""
    messages: list[dict[str, str]] = []
    rows = []
    for turn, content in enumerate(prompt.messages[:turns]):
        messages.append({"role": "user", "content": content})
        watched.drafts.clear()
        fixed = watched.pace.total if watched.pace else 0.0
        reply = llm.chat(messages, params)
        messages.append({"role": "assistant", "content": reply.text})
        stats = reply.stats
        rows.append(
            {
                "category": prompt.category,
                "turn": turn,
                "temperature": params.temperature,
                "prompt_tokens": stats.prompt_tokens,
                "token_ids": reply.token_ids,
                "finish_reason": reply.finish_reason,
                "drafts": [asdict(draft) for draft in watched.drafts],
                # The tokens of the passes after the one that read the prompt.
                "decode_tokens": len(reply.token_ids) - 1,
                "decode_seconds": stats.decode_seconds,
                "fixed_seconds": watched.pace.total - fixed if watched.pace else 0.0,
                "ttft_seconds": stats.ttft_seconds,
                "draft_seconds": stats.draft_seconds,
                "wait_seconds": stats.wait_seconds,
                "compute_seconds": stats.compute_seconds,
                "rounds": stats.rounds,
                "levels": stats.levels,
                "bytes_streamed": stats.bytes_streamed,
                "peak_memory_bytes": stats.peak_memory_bytes,
            }
        )
    return rows


def work(given: argparse.Namespace) -> list[Row]:
    """What the process of one method does: load, answer every prompt, report."""
    from transformers import AutoTokenizer

    from real_clock import Costs, Watched
    from understudy import LLM, SamplingParams

    method, codec = given.methods[0]
    context = context_for(AutoTokenizer.from_pretrained(given.model), given)
    options: Row = {"method": method, "codec": codec, "context": context, "generation_config": "none"}
    options |= {"resident": given.resident, "bits": given.bits, "quantizer": given.quantizer}
    options["head_bits"] = given.head_bits
    if given.memory is not None:
        options["memory"] = str(int(given.memory * given.planned))
    tokens = given.plain_tokens if method == "none" and given.plain_tokens else given.new_tokens
    rows = []
    with LLM(given.model, **options) as llm:
        watched = Watched(llm.engine.drafter, given.costs and Costs.of(given.costs), given.ranks)
        llm.engine.drafter = watched
        llm.chat([{"role": "user", "content": WARM_UP}], SamplingParams(temperature=0.0, max_new_tokens=4))
        for temperature in given.temperatures:
            for prompt in real_prompts.chosen(given.categories, given.prompts):
                index = real_prompts.PROMPTS.index(prompt)
                llm.settle()
                params = SamplingParams(
                    temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, seed=index, max_new_tokens=tokens
                )
                for row in conversation(llm, watched, prompt, params, given.turns):
                    row |= {"method": method, "codec": codec, "name": f"{prompt.category} {index} {row['turn']}"}
                    rows.append(row)
                    print(report(row, bool(given.costs)), file=sys.stderr, flush=True)
    return rows


def report(row: Row, fixed: bool) -> str:
    """One line on a text, while others are still to come."""
    found = real_table.figures([row])
    speed = found["fixed_tokens_per_second" if fixed else "tokens_per_second"]
    length = found["tokens_per_pass"]
    head = f"{row['method']}/{row['codec']} T={row['temperature']:g} {row['name']}"
    return f"{head}: {length or 0:.2f} tokens per pass, {speed or 0:.2f} tok/s"


def launch(given: argparse.Namespace, method: tuple[str, str]) -> list[Row]:
    """Run one method in its own process, under the cap where one is given."""
    options = [option for option in sys.argv[1:] if option != "--worker"]
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *options, "--methods", "/".join(method)]
    if given.memory is None:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"real: {method[0]} ended with status {done.returncode}")
        return list(json.loads(done.stdout.splitlines()[-1]))
    result = capped.run(command, given.memory)
    if result.returncode:
        why = "was killed at its memory limit" if result.killed_for_memory else f"ended with status {result.returncode}"
        raise SystemExit(f"real: {method[0]} {why}; the kernel counted {result.peak_bytes / 1e9:.2f} GB at most")
    return list(json.loads(result.output.splitlines()[-1]))


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def methods(text: str) -> list[tuple[str, str]]:
    """METHOD or METHOD/CODEC, with commas between several. Options of a method have `;` where the command line has commas."""
    pairs = [part.partition("/") for part in text.split(",")]
    return [(method.replace(";", ","), codec or "raw") for method, _, codec in pairs]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Real text in eleven categories, plain and drafted.")
    parser.add_argument("model", help="an instruct model: a checkpoint directory or a hub's id")
    parser.add_argument("--methods", type=methods, default=methods("none,substitute"), help="METHOD/CODEC, several with commas")
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in text.split(",")], default=[0.0, 0.7])
    parser.add_argument("--categories", type=names, default=real_prompts.CATEGORIES)
    parser.add_argument("--prompts", type=int, default=2, help="prompts of each category, 1 or 2")
    parser.add_argument("--turns", type=int, default=2, help="turns of each prompt, 1 or 2")
    parser.add_argument("--new-tokens", type=int, default=128, help="the most tokens of an answer")
    parser.add_argument("--plain-tokens", type=int, default=0, help="the most tokens that plain decoding writes (default: as many)")
    parser.add_argument("--memory", type=capped.size, help="cap on the process's memory, like 2.2GiB (default: none)")
    parser.add_argument("--planned", type=float, default=0.97, help="the share of the cap that the plan may use")
    parser.add_argument("--resident", default="auto", help="exact weights in memory: auto, none, residual or whole")
    parser.add_argument("--bits", default="auto")
    parser.add_argument("--quantizer")
    parser.add_argument("--head-bits", default="auto", help="bits of the head's copy: 4, 8 or auto")
    parser.add_argument("--no-clock", action="store_true", help="everything in memory, seconds from --costs: the same in every run")
    parser.add_argument("--costs", help="seconds of a level, a node more in it, a pass, a node more in it")
    parser.add_argument("--ranks", action="store_true", help="also say where the target's token stands among the draft's best")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = [name for name in given.categories if name not in real_prompts.CATEGORIES]
    if unknown:
        parser.error(f"there is no category {unknown[0]}: {', '.join(real_prompts.CATEGORIES)}")
    if given.no_clock:
        given.resident = "residual"
        given.costs = given.costs or "0.08,0.012,1.2,0.008"
    given.bits = int(given.bits) if given.bits.isdigit() else given.bits
    given.head_bits = int(given.head_bits) if given.head_bits.isdigit() else given.head_bits
    return given


def main() -> None:
    given = arguments()
    if given.worker:
        print(json.dumps(work(given)))
        return
    runs = [row for method in given.methods for row in launch(given, method)]
    settings = {"methods": given.methods, "temperatures": given.temperatures, "categories": given.categories}
    rows = real_table.summary(settings, runs)
    print(real_table.table(rows))
    if given.json:
        command = " ".join(sys.argv)
        given.json.write_text(json.dumps({"command": command, "rows": rows, "runs": runs}) + "\n")
    wrong = [row for row in rows if row["same"] not in (None, 1.0)]
    if wrong:
        raise SystemExit("THE TEXTS DIFFER.")


if __name__ == "__main__":
    main()
