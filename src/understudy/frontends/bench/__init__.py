"""`understudy bench`: methods side by side, each from a cold page cache. All must write the same tokens."""

import gc
import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from ...drafters import DEFAULT_METHOD, methods_alone
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
    from ...plan.machine import Machine
    from ...weights.store import Store

PLANS = ("none", "residual", "whole", "auto")
WARM_UP = "import warnings\n"
PEAK_SECONDS = 0.6
CLEAR_REFS = Path("/proc/self/clear_refs")


def _names(text: str) -> list[str]:
    """An argument type: method specs, where a comma may also stand between a method's own options."""
    names: list[str] = []
    for part in filter(None, text.split(",")):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        else:
            names.append(part)
    if not names:
        raise UsageError(f"--methods takes names with commas between, such as {','.join(methods_alone())}.")
    return names


def _numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    group = parser.add_argument_group("what to measure")
    group.add_argument("--methods", type=_names, metavar="A,B", help="default: all that need no second model")
    group.add_argument(
        "--plan", action="store_true", help="compare what --resident keeps instead: none, residual, whole, auto"
    )
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
    if args.plot is not None:
        from .plot import check

        check(args.plot)
    live = Live(args.quiet)
    bench = Bench(model or "demo")
    if args.plan and args.resident is not None:
        raise UsageError("--plan runs every --resident: leave that out.")
    methods = args.methods or ([DEFAULT_METHOD] if args.plan else methods_alone())
    for method, temperature, resident in product(methods, args.temperatures, PLANS if args.plan else ("",)):
        params = SamplingParams(temperature, seed=args.seed, max_new_tokens=args.new_tokens, ignore_eos=True)
        bench.rows.append(_measure(model, method, params, args, live, bench, resident))
        # The memory of one model is given back before the next is loaded.
        gc.collect()
    if args.reference:
        from .reference import compare

        bench.reference = compare(model, bench, args.new_tokens, live)
    _print(bench, args)
    return 1 if bench.differences else 0


def _measure(
    model: str | None, method: str, params: SamplingParams, args: Namespace, live: Live, bench: Bench, resident: str
) -> Row:
    """One method at one temperature: a model loaded anew, warmed up on another text, its files out of the page cache."""
    from ...llm import LLM

    what = f"{method}{f', resident {resident},' if resident else ''} at T={params.temperature:g}"
    # The model's own defaults would change what is compared.
    options = {**placement(args), "method": method, "generation_config": "none"} | ({"resident": resident} if resident else {})
    forget_peak_memory()
    with LLM(model, progress=Progress(live), **options) as llm:
        bench.prompts = prompts(llm.tokenizer, args.prompts, args.prompt_tokens)
        bench.machine = llm.machine.to_dict()
        live.draw(f"{what} · warming up")
        llm.generate(WARM_UP, replace(params, max_new_tokens=2))
        drop_page_cache(llm.store.path)
        completions = []
        for index, prompt in enumerate(bench.prompts):
            live.draw(f"{what} · prompt {index + 1} of {len(bench.prompts)}")
            completions += llm.generate([prompt], replace(params, seed=params.seed + index))
    plan = llm.plan
    machine = llm.machine
    store = llm.store
    del llm
    # Measuring the link takes memory that the plan has not counted.
    gc.collect()
    row = Row.of(method, params.temperature, completions, _link_peak(machine, store))
    if resident:
        predicted = plan.predicted(row.tokens_per_pass, row.tokens_per_pass)
        row = replace(row, resident=resident, predicted=predicted)
    live.say(f"{what}: {row.tokens_per_second:.2f} tok/s")
    return row


def _link_peak(machine: "Machine", store: "Store") -> float:
    """Bytes per second of the link now, with nothing else running: each row is compared with the peak of its own minute."""
    from ...tiers.probe import measure_disk

    assert machine.disk is not None, "a model was loaded without its disk having been measured"
    return measure_disk(store.streamed, machine.disk.block, machine.disk.threads, PEAK_SECONDS)


def forget_peak_memory() -> None:
    """Let the kernel count this process's peak memory anew, so that each row has its own (if the kernel refuses, it only grows)."""
    if os.access(CLEAR_REFS, os.W_OK):
        CLEAR_REFS.write_text("5")


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
