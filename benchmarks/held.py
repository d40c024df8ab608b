"""Holds plans to the kernel's own count: random models and options, each in a cgroup whose limit is its budget.

    python benchmarks/held.py --configurations 50 --json held.json

Every run is a command's own process: rows of text are read and continued to the end of the context, greedy and sampled, with and
without log-probabilities, so that all that a plan counts is used. Then one more turn is asked for, which must be refused. The
kernel's highest count of the process's memory (VmHWM) is compared with the plan and with the budget. Needs the right to make memory
cgroups. A killed benchmark goes on where it was."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import capped

AGAIN = (sys.executable, str(Path(__file__)))
MIB = 1 << 20
# How near the count should come to the plan.
GOAL = 0.03
# MiB above the smallest budget.
ROOM = (0, 8, 40, 150)


@dataclass(frozen=True)
class Held:
    """One model and the options that it runs with."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    window: int
    context: int
    rows: int
    bits: int
    codec: str
    method: str
    resident: str
    # MiB above the smallest budget.
    room: int
    # A checkpoint in place of a random model; "": a random one.
    real: str = ""

    @property
    def name(self) -> str:
        """What its record is called."""
        return " ".join(f"{key}={Path(str(value)).name}" for key, value in asdict(self).items() if value != "")

    @classmethod
    def chosen(cls, chance: random.Random, number: int, real: str) -> Held:
        """Configuration `number`: every eighth is the checkpoint `real`, where one is given."""
        heads = chance.choice((4, 8))
        return cls(
            hidden=heads * chance.choice((32, 64)),
            layers=chance.choice((2, 6, 12)),
            heads=heads,
            kv_heads=chance.choice((1, 2, 4)),
            vocabulary=chance.choice((512, 2048, 8192)),
            window=chance.choice((0, 0, 128)),
            context=chance.choice((256, 512, 1024)),
            rows=chance.choice((1, 1, 4)),
            bits=chance.choice((4, 4, 3, 2, 8)),
            codec=chance.choice(("delta", "raw")),
            method=chance.choice(("substitute", "substitute:width=8,depth=8", "none", "ngram")),
            resident=chance.choice(("auto", "none", "residual", "whole")),
            room=chance.choice(ROOM),
            real=real if number % 8 == 3 else "",
        )

    def options(self) -> dict[str, Any]:
        """Keywords of LLM, but for the memory."""
        names = ("context", "rows", "bits", "codec", "method", "resident")
        return {name: getattr(self, name) for name in names} | {"generation_config": "none", "device": "cpu"}

    def save(self, place: Path) -> None:
        """Write a random checkpoint of this shape, with a tokenizer of bytes."""
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

        torch.manual_seed(0)
        config = MistralConfig(
            hidden_size=self.hidden, intermediate_size=3 * self.hidden, num_hidden_layers=self.layers, head_dim=64,
            num_attention_heads=self.heads, num_key_value_heads=min(self.kv_heads, self.heads), vocab_size=self.vocabulary,
            max_position_embeddings=8192, sliding_window=self.window or None, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(place)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)


def own_process() -> Any:
    """The class LLM in this process, made a command's own."""
    from understudy import startup
    from understudy.frontends import opening

    startup.own()
    found = opening.llm()
    return found


def fill(llm: Any) -> None:
    """Use all that the plan of `llm` counts: rows to the end of the context, wide trees, sampling, log-probabilities."""
    from understudy import SamplingParams

    rows, context, vocabulary = llm.plan.rows, llm.context, llm.maker.vocabulary
    chance = random.Random(0)
    reply = min(24, context // 4)
    texts = [[chance.randrange(vocabulary) for _ in range(context - reply)] for _ in range(rows)]
    greedy = {"max_new_tokens": reply, "temperature": 0, "ignore_eos": True}
    llm.generate(texts, SamplingParams(**greedy))
    # Rows of the embedding that are kept are those of different tokens: as many as there is room for.
    row_bytes = llm.store.embedding.shape[1] * llm.model.dtype.itemsize
    known = min(vocabulary, llm.plan.items.get("embedding rows", 0) // row_bytes)
    for first in range(0, known, rows * (context - reply)):
        some = [list(range(first + row, known, rows))[: context - reply] or [1] for row in range(rows)]
        llm.generate(some, SamplingParams(max_new_tokens=1, temperature=0))
    # The same tokens again and again are easy to guess: trees grow wide.
    llm.generate([[7, 8, 9, 10] * ((context - reply) // 4)] * rows, SamplingParams(**greedy))
    sampled = {**greedy, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 1}
    llm.generate(texts, SamplingParams(**sampled, logprobs=3, prompt_logprobs=3))


def refusal(llm: Any) -> str:
    """What is said to a turn that does not fit."""
    from understudy import SamplingParams
    from understudy.errors import UsageError

    try:
        llm.generate([[1] * llm.context], SamplingParams(max_new_tokens=1))
    except UsageError as error:
        return str(error)
    return ""


def measured(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """In the cgroup: what the process held at most, and what its plan said."""
    with own_process()(model, **options) as llm:
        fill(llm)
        plan = llm.plan
        return {
            "peak": llm.model.device.peak_bytes(), "used": plan.used, "budget": plan.budget_bytes, "items": plan.items,
            "streamed": plan.streamed_bytes, "refused": refusal(llm),
        }  # fmt: skip


@contextmanager
def made(one: Held) -> Iterator[Path]:
    """The prepared model of `one`."""
    from understudy import LLM

    with tempfile.TemporaryDirectory() as work:
        if one.real:
            yield LLM.prepare(one.real, bits=one.bits, codec=one.codec).path
            return
        one.save(Path(work) / "model")
        # How good its copy is matters to nobody.
        yield LLM.prepare(
            Path(work) / "model", output=Path(work) / "store", bits=one.bits, codec=one.codec, calibrate="none"
        ).path


def least_of(store: Path, options: Mapping[str, Any], runtime: int) -> int:
    """The smallest budget in a process that holds `runtime` bytes beside the model."""
    from understudy import LLM
    from understudy.devices import processor

    processor._runtime_bytes = lambda: runtime
    return int(LLM.plan_only(store, **options).least_bytes)


def run(one: Held, runtime: int) -> dict[str, Any]:
    """One configuration under its budget. `runtime`: what a fresh process holds beside a model."""
    with made(one) as store:
        budget = least_of(store, one.options(), runtime) + one.room * MIB
        words = [*AGAIN, "--store", str(store), "--options", json.dumps(one.options()), "--memory", str(budget)]
        # Where kernels had to be compiled, that took memory, and the first try was refused: then it is made again.
        for _ in range(2):
            done = capped.run(words, budget, cold=False, timeout=500)
            if done.returncode == 0:
                break
    if done.returncode or done.killed_for_memory:
        return {"failed": "killed for memory" if done.killed_for_memory else f"status {done.returncode}", "budget": budget}
    found: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
    return {**found, "group": done.peak_bytes, "anonymous": done.peak_anonymous_bytes}


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each configuration, and how many hold."""
    lines: list[str] = []
    offs: list[float] = []
    above = 0
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"{row['failed']:>20}  {name}")
            above += 1
            continue
        off = row["peak"] / row["used"] - 1
        offs.append(off)
        above += row["peak"] > row["budget"] or not row["refused"]
        lines.append(f"{row['peak'] / MIB:7.1f} of {row['used'] / MIB:7.1f} {off:+6.1%}  {name}")
    near = sum(abs(off) <= GOAL for off in offs)
    middle = statistics.median(offs) if offs else 0.0
    told = f"{above} above the budget or not refused, {near} within {GOAL:.0%} of the plan, median {middle:+.1%}"
    return [*lines, f"{len(rows)} configurations: {told}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configurations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="numbers of configurations, with commas between them: no others are run")
    parser.add_argument("--json", type=Path, default=Path("held.json"))
    parser.add_argument("--real", default="", help="a checkpoint that some of the configurations run")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--runtime", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runtime:
        own_process()
        from understudy.devices.processor import Processor

        print(Processor().runtime_bytes)
        return
    if given.store:
        print(json.dumps(measured(given.store, {**json.loads(given.options), "memory": given.memory})))
        return
    if not capped.version():
        raise SystemExit("held: no writable memory cgroup here; run as root, or in a container that has one")
    rows: dict[str, dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else {}
    chance = random.Random(given.seed)
    wanted = [Held.chosen(chance, number, given.real) for number in range(given.configurations)]
    if given.only:
        wanted = [wanted[int(number)] for number in given.only.split(",")]
    runtime = int(subprocess.run([*AGAIN, "--runtime"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
    for one in wanted:
        if one.name not in rows:
            rows[one.name] = run(one, runtime)
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
            print(summary({one.name: rows[one.name]})[0], file=sys.stderr, flush=True)
    print("\n".join(summary({one.name: rows[one.name] for one in wanted})))


if __name__ == "__main__":
    main()
