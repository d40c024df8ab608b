"""The table of RESULTS.md: plain offloading, drafting, both codecs, and peers, on one checkpoint under one cap in one run.

    python benchmarks/compare.py STANDIN --memory 3.5GB --json results.json

Every row is a process of its own in a fresh memory cgroup with a cold page cache, apart from `transformers`, which holds the
whole model in memory without a cap. Says whether all texts agree: plain decoding is given fewer tokens (it is slow), so it is
compared with the beginning of the drafted text."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import capped

PEERS = Path(__file__).with_name("peers.py")


def bench(
    model: str, cap: int, codec: str, method: str, temperatures: str, prompts: int, tokens: int, more: Sequence[str]
) -> list[Any]:
    """The rows of `understudy bench` for one method under the cap, with the kernel's own peak added."""
    command = [
        sys.executable, "-m", "understudy", "bench", model, "--methods", method, "--temperatures", temperatures,
        "--prompts", str(prompts), "--new-tokens", str(tokens), "--memory", str(cap), "--codec", codec, "--context", "512",
        "--json", *more,
    ]  # fmt: skip
    done = capped.run(command, cap)
    if done.returncode:
        raise SystemExit(f"compare: {' '.join(command)} ended with status {done.returncode}")
    rows: list[Any] = json.loads(done.output)["rows"]
    for row in rows:
        row |= {
            "codec": codec,
            "kernel_peak_bytes": done.peak_bytes,
            "kernel_anonymous_bytes": done.peak_anonymous_bytes,
        }
    return rows


def peer(mode: str, model: str, cap: int, tokens: int) -> dict[str, Any]:
    """What benchmarks/peers.py prints; its own cap is set only where the peer offloads."""
    memory = ["--memory", str(cap)] if mode == "accelerate" else []
    command = [sys.executable, str(PEERS), mode, model, "--new-tokens", str(tokens), *memory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def agree(rows: Sequence[Any]) -> bool:
    """Do all rows of a temperature write the same tokens, as far as the shorter goes?"""
    for a in rows:
        for b in rows:
            if a["temperature"] == b["temperature"]:
                for one, other in zip(a["token_ids"], b["token_ids"], strict=False):
                    length = min(len(one), len(other))
                    if one[:length] != other[:length]:
                        return False
    return True


def table(rows: Sequence[Any], peers: dict[str, Any]) -> str:
    base = next(row["tokens_per_second"] for row in rows if row["method"] == "none")
    lines = [
        "| method | codec | T | tok/s | x none | tokens per pass | GB per pass | link GB/s | of its peak | limit | reached |"
        " draft / wait / compute s per pass | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        passes, speed, limit = max(row["passes"], 1), row["tokens_per_second"], row["limit_tokens_per_second"]
        parts = " / ".join(f"{row[name] / passes:.2f}" for name in ("draft_seconds", "wait_seconds", "compute_seconds"))
        link, share = row["link_bytes_per_second"] / 1e9, row["link_bytes_per_second"] / row["link_peak"]
        cells = [row["method"], row["codec"], f"{row['temperature']:g}", f"{speed:.2f}", f"{speed / base:.1f}"]
        cells += [f"{row['tokens_per_pass']:.1f}", f"{row['bytes_per_pass'] / 1e9:.2f}", f"{link:.2f}", f"{share:.0%}"]
        cells += [f"{limit:.2f}", f"{speed / limit:.0%}", parts, f"{row['peak_memory_bytes'] / 1e9:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for name, found in peers.items():
        speed, peak = found["tokens_per_second"], found.get("peak_memory_bytes", found["peak_resident_bytes"])
        lines.append(f"| {name} | | 0 | {speed:.2f} | {speed / base:.1f} | 1.0 | | | | | | | {peak / 1e9:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Plain offloading, drafting and peers side by side under one memory cap."
    )
    parser.add_argument("model")
    parser.add_argument("--memory", type=capped.size, default=3_500_000_000)
    parser.add_argument("--codecs", default="raw,delta")
    parser.add_argument("--temperatures", default="0,0.6")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--plain-tokens", type=int, default=12, help="tokens that plain decoding writes")
    parser.add_argument("--resident", default="none")
    parser.add_argument("--throttle", help="hold the link to so many bytes a second, such as 2GB")
    parser.add_argument("--peers", default="accelerate,transformers")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[Any] = []
    for codec in given.codecs.split(","):
        more = ["--resident", given.resident, *(["--throttle", given.throttle] if given.throttle else [])]
        rows += bench(given.model, given.memory, codec, "none", "0", 1, given.plain_tokens, more)
        rows += bench(
            given.model, given.memory, codec, "substitute", given.temperatures, given.prompts, given.new_tokens, more
        )
    peers = {
        name: peer(name, given.model, given.memory, 8 if name == "accelerate" else 64)
        for name in filter(None, given.peers.split(","))
    }
    print(table(rows, peers))
    same = agree(rows)
    print("\nAll texts agree." if same else "\nTHE TEXTS DIFFER.")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "peers": peers, "agree": same}, indent=1) + "\n")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
