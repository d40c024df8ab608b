"""`understudy bench`: methods side by side, each from a cold page cache. All must write the same tokens."""

import gc
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from ...drafters import DEFAULT_METHOD, methods_alone, spec_of
from ...errors import UsageError
from ...params import SamplingParams
from ...policies import POLICIES, policy_of
from ..live import Live, Progress
from ..model import resolve
from ..options import LINK, OUTPUT, PLACEMENT, count, declare, not_negative, number, placement, whole
from ..parser import Command, Parser
from ..pictures import check
from ..show import to_json
from .batching import Workload
from .batching import compare as compare_batching
from .batching_table import batching_table
from .cold import measured_model
from .prompts import TEXTS, prompts
from .reference import check as check_reference
from .reference import compare as compare_reference
from .rows import Bench, Row, difference
from .table import table

if TYPE_CHECKING:
    from ...plan.machine import Machine
    from ...weights.store import Store

PLANS = ("none", "residual", "whole", "auto")
PEAK_SECONDS = 0.6
# Texts to continue, where nobody says how many.
PROMPTS = 2


def names(text: str) -> list[str]:
    """Specs with commas between, where a comma may also stand between the options of one."""
    found: list[str] = []
    for part in filter(None, text.split(",")):
        option, mark, _ = part.partition("=")
        if mark and ":" not in option and found:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _methods(text: str) -> list[str]:
    """An argument type: method specs."""
    found = names(text)
    if not found:
        raise UsageError(f"--methods takes names with commas between, such as {','.join(methods_alone())}.")
    return found


def _numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def _policies(text: str) -> list[str]:
    """An argument type: policies, each of which is known."""
    found = names(text)
    if not found:
        raise UsageError(f"--batching takes names with commas between, such as {','.join(POLICIES)}.")
    for name in found:
        policy_of(name)
    return found


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    group = parser.add_argument_group("what to measure")
    group.add_argument("--methods", type=_methods, metavar="A,B", help="default: all that need no second model")
    group.add_argument(
        "--plan", action="store_true", help="compare what --resident keeps instead: none, residual, whole, auto"
    )
    group.add_argument(
        "--batching", type=_policies, metavar="A,B", help="compare ways of batching instead: ragged, eqspec, exspec"
    )
    group.add_argument("--rows", type=count, metavar="N", help="with --batching: requests that run together (default 8)")
    group.add_argument(
        "--alone", type=not_negative, metavar="N",
        help="with --batching: of the requests, how many run one by one too, to compare with (default: all)",
    )  # fmt: skip
    group.add_argument("--temperatures", type=_numbers, default=[0.0, 0.6], metavar="T,T", help="default 0,0.6")
    group.add_argument("--prompts", type=count, metavar="N", help="texts to continue (default 2; with --batching 2 for each row)")
    group.add_argument("--prompt-tokens", type=count, default=64, metavar="N", help="length of each, or the longest (default 64)")
    group.add_argument("--new-tokens", type=count, default=128, metavar="N", help="tokens to write, at most (default 128)")
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the sampled runs (default 0)")
    group.add_argument("--reference", action="store_true", help="compare greedy tokens with transformers' own")
    declare(parser, PLACEMENT, LINK, OUTPUT)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the result (needs matplotlib)")


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.batching is not None:
        return _run_batching(args, model)
    if wrong := [flag for flag, value in (("--rows", args.rows), ("--alone", args.alone)) if value is not None]:
        raise UsageError(f"{wrong[0]} is for --batching: give that too, such as --batching ragged,eqspec,exspec.")
    args.prompts = args.prompts or PROMPTS
    if args.prompts > len(TEXTS):
        raise UsageError(f"--prompts can be at most {len(TEXTS)}, got {args.prompts}.")
    if args.plot is not None:
        check(args.plot)
    if args.reference:
        check_reference(model, args.temperatures)
    live = Live(args.quiet)
    bench = Bench(model or "demo")
    if args.plan and args.resident is not None:
        raise UsageError("--plan runs every --resident: leave that out.")
    methods = args.methods or ([DEFAULT_METHOD] if args.plan else methods_alone())
    _prepare(model, methods, args, live)
    for method, temperature, resident in product(methods, args.temperatures, PLANS if args.plan else ("",)):
        params = SamplingParams(temperature, seed=args.seed, max_new_tokens=args.new_tokens, ignore_eos=True)
        bench.rows.append(_measure(model, method, params, args, live, bench, resident))
        # The memory of one model is given back before the next is loaded.
        gc.collect()
    try:
        if args.reference:
            bench.reference = compare_reference(model, bench, args, live)
    finally:
        # What was measured is told, whatever comes of the comparison.
        _print(bench, args)
    return 1 if bench.differences else 0


def _prepare(model: str | None, methods: Sequence[str], args: Namespace, live: Live) -> None:
    """Make the Store, where there is none, as the first method that drafts by the copy would: all methods are measured with it."""
    from ...llm import LLM

    drafting = [method for method in methods if spec_of(method).holds_substitute]
    if drafting and drafting[0] != methods[0]:
        options = {**placement(args), "method": drafting[0]}
        # What does not fit is told before minutes are spent.
        LLM.plan_only(model, **options)
        LLM.prepare(model, progress=Progress(live), **options)


def _run_batching(args: Namespace, model: str | None) -> int:
    asked = Workload.of(args, model)
    bench = compare_batching(asked, Live(args.quiet))
    print(to_json(bench.to_dict()) if args.json else "\n".join(batching_table(bench)))
    sys.stdout.flush()
    return 1 if bench.differences else 0


def _measure(
    model: str | None, method: str, params: SamplingParams, args: Namespace, live: Live, bench: Bench, resident: str
) -> Row:
    """One method at one temperature: a model loaded anew, warmed up on another text, its files out of the page cache."""
    what = f"{method}{f', resident {resident},' if resident else ''} at T={params.temperature:g}"
    # The model's own defaults would change what is compared.
    options = {**placement(args), "method": method, "generation_config": "none"} | ({"resident": resident} if resident else {})
    with measured_model(model, what, params, live, **options) as llm:
        bench.prompts = prompts(llm.tokenizer, args.prompts, args.prompt_tokens)
        bench.machine = llm.machine.to_dict()
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
    row = Row.of(method, params.temperature, completions, _link_peak(machine, store, args.throttle or 0.0))
    if resident:
        predicted = plan.predicted(row.tokens_per_pass, row.tokens_per_pass)
        row = replace(row, resident=resident, predicted=predicted)
    live.say(f"{what}: {row.tokens_per_second:.2f} tok/s")
    return row


def _link_peak(machine: "Machine", store: "Store", throttle: float) -> float:
    """Bytes per second of the link now, with nothing else running: each row is compared with the peak of its own minute. throttle:
    the most that it is held to; 0: nothing."""
    from ...tiers.probe import measure_disk

    assert machine.disk is not None, "a model was loaded without its disk having been measured"
    measured = measure_disk(store.streamed, machine.disk.block, machine.disk.threads, PEAK_SECONDS)
    return min(measured, throttle) if throttle else measured


def _print(bench: Bench, args: Namespace) -> None:
    bench.differences = difference(bench.rows)
    print(to_json(bench.to_dict()) if args.json else "\n".join(table(bench)))
    sys.stdout.flush()
    if args.plot is not None:
        from .plot import plot

        plot(bench, args.plot)


command = Command("methods side by side: same tokens, at what speed, against which limit", _declare, _run)
