"""How long a text takes until its first token, by its length: this project, then `transformers`, in one process.

    python benchmarks/first_token.py MODEL --tokens 1500,6000 --rounds 2 --json first_token.json

MODEL is a checkpoint directory. Texts are random tokens of its vocabulary, another in each round, so nothing was read before.
`--memory` as `understudy run` takes it (by default all of the weights stay in memory where they fit); `--no-transformers` where the
model does not fit in memory twice. A line has the fastest of all rounds: what else a machine does only adds to that."""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from understudy.frontends import SPINS

# As the command line has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

import torch

from understudy import LLM, SamplingParams

# Ordinary tokens lie between the special ones at either end of most vocabularies.
FIRST, LAST = 100, 30_000
# A text has about so many different ones; each is read from the disk once.
WORDS = 500


def texts(vocabulary: int, lengths: list[int], rounds: int) -> list[list[list[int]]]:
    """For each round a text of each length."""
    chance = random.Random(1)
    span = range(min(FIRST, vocabulary - 2), min(LAST, vocabulary - 1))
    found = []
    for _ in range(rounds):
        words = chance.sample(span, min(WORDS, len(span)))
        found.append([chance.choices(words, k=length) for length in lengths])
    return found


def ours(given: argparse.Namespace, lengths: list[int]) -> list[float]:
    """Seconds to the first token of a text of each length."""
    with LLM(given.model, method="none", rows=1, context=max(lengths) + 64, memory=given.memory) as llm:
        asked = SamplingParams(max_new_tokens=1, ignore_eos=True)
        found = []
        for round_texts in texts(llm.model.vocabulary, lengths, given.rounds):
            llm.generate([[5] * 8], asked)
            found.append([llm.generate([text], asked)[0].stats.ttft_seconds for text in round_texts])
    return [min(seconds) for seconds in zip(*found, strict=True)]


def stock(given: argparse.Namespace, lengths: list[int]) -> list[float]:
    """The same of a forward of the stock model with the logits of the last token."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto")
    found = []
    with torch.inference_mode():
        for round_texts in texts(model.config.get_text_config().vocab_size, lengths, given.rounds):
            model(torch.tensor([[5] * 64]))
            seconds = []
            for text in round_texts:
                start = time.perf_counter()
                model(torch.tensor([text]), logits_to_keep=1)
                seconds.append(time.perf_counter() - start)
            found.append(seconds)
    return [min(seconds) for seconds in zip(*found, strict=True)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the time to the first token by the length of the text.")
    parser.add_argument("model", help="a checkpoint directory")
    parser.add_argument("--tokens", default="500,1500", help="lengths of texts (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="texts of each length (default %(default)s)")
    parser.add_argument("--memory", help="as `understudy run` takes it")
    parser.add_argument("--no-transformers", action="store_true", help="measure this project alone")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    lengths = [int(length) for length in given.tokens.split(",")]
    columns = {"understudy": ours(given, lengths)}
    if not given.no_transformers:
        columns["transformers"] = stock(given, lengths)
    print("| tokens | " + " | ".join(f"{name}, s" for name in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for place, length in enumerate(lengths):
        print(f"| {length} | " + " | ".join(f"{seconds[place]:.2f}" for seconds in columns.values()) + " |")
    if given.json:
        figures = {"model": str(given.model), "threads": torch.get_num_threads(), "tokens": lengths, **columns}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
