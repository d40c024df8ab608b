"""How long a client waits for its first token when the long beginning of its prompt was read before.

    python benchmarks/prefixes.py MODEL --memory 1GB [--tokens 2000]

One process after another in one run: the prompt is read; another with the same beginning comes beside it (copied from its row);
four equal ones come together; and a new process finds the beginning on disk."""

import argparse
import random
import tempfile
from typing import Any

from understudy import LLM, SamplingParams

ROWS = 4


def prompt(llm: LLM, beginning: int, last: int) -> list[int]:
    """A text of `beginning` tokens that all share, and 20 of its own."""
    vocabulary = llm.store.embedding.shape[0]
    shared, own = random.Random(1), random.Random(last)
    own_tokens = [own.randrange(1, vocabulary) for _ in range(20)]
    return [shared.randrange(1, vocabulary) for _ in range(beginning)] + own_tokens


def measured(llm: LLM, what: str, prompts: list[list[int]]) -> None:
    """Print how long the first token took, what was read, and what was streamed."""
    llm.settle()
    params = SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=0)
    passes = llm.engine.clock.passes
    done = llm.generate(prompts, params)
    seconds = [one.stats.ttft_seconds for one in done]
    read = sum(one.stats.prompt_tokens - one.stats.cached_tokens for one in done)
    streamed = sum(one.stats.bytes_streamed for one in done) / 1e6
    passes = llm.engine.clock.passes - passes
    print(f"| {what} | {max(seconds):.2f} s | {read} of {sum(map(len, prompts))} | {passes} | {streamed:.0f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    context = args.tokens + 100
    with tempfile.TemporaryDirectory() as directory:
        options: dict[str, Any] = {"memory": args.memory, "rows": ROWS, "context": context, "prefix_cache": directory}
        print("| | first token | tokens read | passes | streamed |\n|---|---|---|---|---|")
        with LLM(args.model, **options) as llm:
            measured(llm, "a prompt that nobody has read", [prompt(llm, args.tokens, 1)])
            measured(llm, "the same beginning, copied from a row", [prompt(llm, args.tokens, 2)])
            for row in range(ROWS):
                llm.engine.forget(row)
            llm.engine.prefixes = None
            measured(llm, "four equal prompts together", [prompt(llm, args.tokens, 3)] * ROWS)
        with LLM(args.model, **options) as llm:
            measured(llm, "the same beginning after a restart, from disk", [prompt(llm, args.tokens, 4)])


if __name__ == "__main__":
    main()
