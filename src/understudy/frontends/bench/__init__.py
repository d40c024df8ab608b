"""`understudy bench`: methods side by side, each from a cold page cache. All must write the same tokens."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...params import SamplingParams
from ..live import Live, Progress
from ..model import resolve
from ..options import OUTPUT, PLACEMENT, count, declare, number, placement, whole
from ..parser import Command, Parser
from ..show import to_json
from .prompts import TEXTS, prompts
from .rows import Bench, Row, difference
from .table import table

if TYPE_CHECKING:
    from ...llm import LLM

METHODS = "none,ngram,substitute"


def _names(text: str) -> list[str]:
    """An argument type: method specs, where a comma may also stand between a method's own options."""
    names: list[str] = []
    for part in filter(None, text.split(",")):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        else:
            names.append(part)
    if not names:
        raise UsageError(f"--methods takes names with commas between, such as {METHODS}.")
    return names


def _numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    group = parser.add_argument_group("what to measure")
    group.add_argument("--methods", type=_names, default=_names(METHODS), metavar="A,B", help=f"default {METHODS}")
    group.add_argument("--temperatures", type=_numbers, default=[0.0, 0.6], metavar="T,T", help="default 0,0.6")
    group.add_argument("--prompts", type=count, default=2, metavar="N", help="texts to continue (default 2)")
    group.add_argument("--prompt-tokens", type=count, default=64, metavar="N", help="length of each (default 64)")
    group.add_argument("--new-tokens", type=count, default=128, metavar="N", help="tokens to write (default 128)")
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the sampled runs (default 0)")
    group.add_argument("--reference", action="store_true", help="compare greedy tokens with transformers' own")
    declare(parser, PLACEMENT, OUTPUT)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the result (needs matplotlib)")


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.prompts > len(TEXTS):
        raise UsageError(f"--prompts can be at most {len(TEXTS)}, got {args.prompts}.")
    params = [
        SamplingParams(temperature=t, seed=args.seed, max_new_tokens=args.new_tokens, ignore_eos=True)
        for t in args.temperatures
    ]
    live = Live(args.quiet)
    bench = Bench(model or "demo")
    for method in args.methods:
        bench.rows += _measure(model, method, params, args, live, bench)
    if args.reference:
        from .reference import compare

        bench.reference = compare(model, bench, args.new_tokens, live)
    _print(bench, args)
    return 1 if bench.differences else 0


def _measure(
    model: str | None, method: str, params: list[SamplingParams], args: Namespace, live: Live, bench: Bench
) -> list[Row]:
    """One method at every temperature; the cache is cold before each."""
    from ...llm import LLM

    rows = []
    with LLM(model, method=method, progress=Progress(live), **placement(args)) as llm:
        bench.prompts = prompts(llm.tokenizer, args.prompts, args.prompt_tokens)
        bench.machine = llm.machine.to_dict()
        for chosen in params:
            drop_page_cache(llm.store.path)
            rows.append(_row(llm, method, chosen, bench, live))
    return rows


def _row(llm: "LLM", method: str, params: SamplingParams, bench: Bench, live: Live) -> Row:
    completions = []
    for index, prompt in enumerate(bench.prompts):
        live.draw(f"{method} · T={params.temperature:g} · prompt {index + 1} of {len(bench.prompts)}")
        completions += llm.generate([prompt], replace(params, seed=params.seed + index))
    row = Row.of(method, params.temperature, completions, llm.machine.link_bandwidth)
    live.clear()
    live.say(f"{method} at T={params.temperature:g}: {row.tokens_per_second:.2f} tok/s")
    return row


def drop_page_cache(folder: Path) -> None:
    """Ask the kernel to forget these files, so that the slow tier is really read. Nothing is deleted."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _print(bench: Bench, args: Namespace) -> None:
    bench.differences = difference(bench.rows)
    if args.plot is not None:
        from .plot import plot

        plot(bench, args.plot)
    if args.json:
        print(to_json(bench.to_dict()))
        return
    print("\n".join(table(bench)))
    sys.stdout.flush()


command = Command("methods side by side: same tokens, at what speed, against which limit", _declare, _run)
