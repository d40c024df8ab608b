"""A batch run that is killed (kill -9) at random moments and begun again: every line has its record exactly once, and its own text.

    python benchmarks/killed.py MODEL --kills 20 --lines 200

Each run of `understudy batch` is killed after a random number of further records, or while it still loads; every second time
the last record is torn besides, as by a crash of the machine. The records are compared with those of a run that nobody killed."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from understudy.frontends import main as command

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


def killed_after(command: list[str], output: Path, more: int, chance: random.Random, **options: Any) -> bool:
    """Run `command` and kill it once `output` has `more` further lines, or while it loads (0). Whether it was still running."""
    before = records(output)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        end = time.monotonic() + (chance.random() if more == 0 else PATIENCE)
        while process.poll() is None and time.monotonic() < end and (more == 0 or records(output) < before + more):
            time.sleep(0.002)
        return process.poll() is None
    finally:
        process.kill()
        process.wait()


def records(output: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def tear(output: Path, chance: random.Random) -> None:
    """Cut the last record somewhere."""
    whole = output.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    output.write_bytes(whole[: chance.randint(last + 1, len(whole) - 1)])


def survive(model: str, folder: Path, kills: int, count: int, seed: int = 0, **options: Any) -> dict[str, int]:
    """Kill a run `kills` times and let it end. Returns what happened; AssertionError where a line is lost, doubled or another text.

    options: those of subprocess.Popen."""
    chance = random.Random(seed)
    asked, output, calm = folder / "in.jsonl", folder / "out.jsonl", folder / "calm.jsonl"
    write_requests(asked, count, chance)
    words = ["batch", model, str(asked), "--rows", "4", "--context", "256", "--memory", "1GiB", "--quiet"]
    assert command([*words, "-o", str(calm)]) == 1, "some lines cannot be answered"
    start = [sys.executable, "-m", "understudy", *words]
    happened = {"kills": 0, "while answering": 0, "torn": 0, "runs": 1}
    for done in range(kills):
        left = count - records(output)
        # The first one while it loads.
        more = chance.randint(0, max(2 * left // (kills - done + 1), 1)) if done else 0
        happened["kills"] += killed_after([*start, "-o", str(output)], output, more, chance, **options)
        happened["while answering"] += more > 0
        happened["runs"] += 1
        if done % 2 and records(output):
            tear(output, chance)
            happened["torn"] += 1
    last = subprocess.run([*start, "-o", str(output)], capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    assert last.returncode == 1, last.stderr
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
    with tempfile.TemporaryDirectory() as folder:
        happened = survive(args.model, Path(folder), args.kills, args.lines, args.seed)
    print(json.dumps(happened))


if __name__ == "__main__":
    main()
