"""How long a verification pass takes with each codec over a link of a given speed.

    python benchmarks/throttled.py MODEL --link 0.5e9 --memory 3.5GB

Plain decoding, so every pass is one token and one sweep of the weights; the first pass, which reads the prompt, is left out."""

import argparse
import statistics
import time

from understudy import LLM, SamplingParams

PROMPT = "def read_table(path):\n"


def passes(model: str, codec: str, memory: str, link: float, count: int) -> tuple[float, float, list[int]]:
    """Median seconds of a pass, bytes of a pass, and the tokens that were written."""
    options = {"codec": codec, "memory": memory, "method": "none", "resident": "none", "context": 512, "throttle": link}
    with LLM(model, **options) as llm:
        seconds, tokens, start = [], [], time.perf_counter()
        for step in llm.stream(PROMPT, SamplingParams(max_new_tokens=count + 1)):
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
            tokens += step.token_ids
        return statistics.median(seconds[1:]), float(llm.plan.streamed_bytes), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a pass takes with each codec, over a link of a given speed.")
    parser.add_argument("model")
    parser.add_argument("--link", type=float, default=0.5e9, help="bytes/s (0: as fast as it is)")
    parser.add_argument("--memory", default="3.5GB")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--codecs", nargs="+", default=["raw", "delta"], help="the first is what others are compared with")
    given = parser.parse_args()
    found = {name: passes(given.model, name, given.memory, given.link, given.passes) for name in given.codecs}
    for name, (seconds, nbytes, _) in found.items():
        print(f"{name:6} {seconds:6.2f} s a pass, {nbytes / 1e9:.2f} GB")
    first, *others = given.codecs
    for name in others:
        print(f"{name} is {found[first][0] / found[name][0]:.2f} times as fast as {first}")
        if found[name][2] != found[first][2]:
            raise SystemExit("THE TEXTS DIFFER.")


if __name__ == "__main__":
    main()
