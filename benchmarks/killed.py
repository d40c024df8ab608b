"""A batch run that is killed (kill -9) at random moments and begun again: every line has its record exactly once, and its own text.

    python benchmarks/killed.py MODEL --kills 20 --lines 200

Runs of `understudy batch` are processes that this one forks, once it has imported all that they need. Each is killed after a random
number of further records, or while it still loads; every second time the last record is torn besides, as by a crash of the
machine. The records are compared with those of a run that nobody killed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import understudy.jobs.run
import understudy.llm
from understudy.frontends import main as command
from understudy.models.streamed import attention_name

# The longest wait for a record, or for a run to end, in seconds.
PATIENCE = 300.0


def write_requests(path: Path, count: int, chance: random.Random) -> None:
    """`count` lines: chats and texts of several lengths, greedy and sampled, and every ninth cannot be answered."""
    lines = []
    for number in range(count):
        body: dict[str, Any] = {"max_tokens": chance.randint(1, 24), "temperature": chance.choice([0, 0.8]), "seed": number}
        chat = bool(number % 2)
        words = " ".join(chance.choices(["tree", "draft", "node", "of", "a"], k=chance.randint(1, 12)))
        body |= {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
        url = "/v1/chat/completions" if chat else "/v1/completions"
        record = {"custom_id": f"line {number}", "method": "POST", "url": url, "body": body}
        if number % 9 == 4:
            record["body"] = {**body, "max_tokens": "many"}
        lines.append('{"custom_id": ' if number % 9 == 8 else json.dumps(record))
    path.write_text("".join(f"{line}\n" for line in lines))


def texts(path: Path) -> dict[str, Any]:
    """What each line was answered with; the same line twice is an error."""
    found: dict[str, Any] = {}
    for text in path.read_text().splitlines():
        record = json.loads(text)
        key = record["custom_id"] or f"number {record['error']['line']}"
        assert key not in found, f"{key} has two records"
        response = record["response"] or {"status_code": None, "body": {}}
        choices = [choice.get("text", choice.get("message")) for choice in response["body"].get("choices", ())]
        found[key] = (record["id"], response["status_code"], choices, record["error"])
    return found


def started(words: list[str]) -> ForkProcess:
    """The command `understudy` with `words`, in a process of its own that has everything imported."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(command(words)))
    process.start()
    return process


def killed_after(words: list[str], output: Path, more: int, chance: random.Random) -> bool:
    """Run the command and kill it once `output` has `more` further lines, or while it loads (0). Whether it was still running."""
    before = records(output)
    process = started(words)
    try:
        end = time.monotonic() + (chance.random() if more == 0 else PATIENCE)
        while process.is_alive() and time.monotonic() < end and (more == 0 or records(output) < before + more):
            time.sleep(0.002)
        return process.is_alive()
    finally:
        process.kill()
        process.join()


def status(words: list[str]) -> int | None:
    """The exit status of a run that nobody kills; None: it did not end in time."""
    process = started(words)
    process.join(PATIENCE)
    return process.exitcode


def records(output: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def tear(output: Path, chance: random.Random) -> None:
    """Cut the last record somewhere."""
    whole = output.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    output.write_bytes(whole[: chance.randint(last + 1, len(whole) - 1)])


def survive(model: str, folder: Path, kills: int, count: int, seed: int = 0) -> dict[str, int]:
    """Kill a run `kills` times and let it end. Returns what happened; AssertionError for a line lost, doubled or changed."""
    chance = random.Random(seed)
    asked, output, calm = folder / "in.jsonl", folder / "out.jsonl", folder / "calm.jsonl"
    write_requests(asked, count, chance)
    start = ["batch", model, str(asked), "--rows", "4", "--context", "256", "--memory", "1GiB", "--quiet"]
    assert status([*start, "-o", str(calm)]) == 1, "some lines cannot be answered"
    happened = {"kills": 0, "while answering": 0, "torn": 0, "runs": 1}
    for done in range(kills):
        left = count - records(output)
        # The first one while it loads.
        more = chance.randint(0, max(2 * left // (kills - done + 1), 1)) if done else 0
        happened["kills"] += killed_after([*start, "-o", str(output)], output, more, chance)
        happened["while answering"] += more > 0
        happened["runs"] += 1
        if done % 2 and records(output):
            tear(output, chance)
            happened["torn"] += 1
    assert status([*start, "-o", str(output)]) == 1
    assert records(output) == count
    found, expected = texts(output), texts(calm)
    assert found == expected and len(found) == count
    return happened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # Imports what transformers imports when it is first asked for something.
    attention_name()
    assert understudy.jobs.run and understudy.llm
    with tempfile.TemporaryDirectory() as folder:
        happened = survive(args.model, Path(folder), args.kills, args.lines, args.seed)
    print(json.dumps(happened))


if __name__ == "__main__":
    main()
