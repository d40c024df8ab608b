"""`understudy doctor`: what this machine has and how fast it is, what limits a model, what is missing; what to do about it."""

import importlib.util
import os
import platform
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import NAME as DEMO
from ..errors import UsageError
from ..plan.sizes import format_size
from .bench_machine import largest, measure
from .findings import Finding, lines
from .live import Live
from .model import resolve
from .options import METHOD, OUTPUT, PLACEMENT, declare, placement
from .parser import Command, Parser
from .show import rate, to_json

if TYPE_CHECKING:
    from ..diagnosis import Diagnosis
    from ..plan.machine import Machine

NEEDED = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jinja2"),
    *("numpy", "numba", "greenlet", "pydantic", "psutil", "xxhash"),
)
# The first version that works and the first that was not tried, as in pyproject.toml.
TRANSFORMERS = ((5, 17), (5, 24))
VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "neon", "asimd")


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="say what limits this model here, and what would help")
    parser.add_argument("--bench", action="store_true", help="measure how fast this machine reads and computes (twenty seconds)")
    declare(parser, PLACEMENT, METHOD, OUTPUT)


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.model is None and (given := [name for name in placement(args) if name != "rows"]):
        raise UsageError(f"--{given[0].replace('_', '-')} is for a model: name one, such as understudy doctor {DEMO}.")
    live = Live(args.quiet)
    live.draw("looking around ...")
    found = list(software())
    missing = any(finding.missing for finding in found)
    said: dict[str, Any] = {}
    if not missing:
        from ..plan.remembered import cache_directory

        cache = cache_directory(os.environ)
        found = [] if args.model is not None else found + list(hardware(cache))
        if args.bench:
            figures = measure(cache, live)
            said["figures"] = figures.to_dict()
            # What was measured anew takes the place of a quick look.
            anew = list(figures.findings())
            found = [finding for finding in found if finding.topic not in {each.topic for each in anew}] + anew
        if args.model is not None:
            diagnosis = _diagnosis(model, args, live)
            said["diagnosis"] = diagnosis.to_dict()
    live.clear()
    if args.json:
        print(to_json({"findings": [asdict(finding) for finding in found], **said}))
    else:
        print("\n".join(lines(found) + (diagnosis.lines() if "diagnosis" in said else [])))
    return 1 if missing else 0


def _diagnosis(model: str | None, args: Namespace, live: Live) -> "Diagnosis":
    """What limits `model` here. Raises UnderstudyError for one that cannot be found, used or held."""
    from ..diagnosis import diagnose
    from ..drawable import drawable
    from ..options import Options
    from ..yardstick import measured

    drawn = drawable(model, Options.of(placement(args), os.environ))
    live.draw("measuring this machine's arithmetic, once ...")
    arithmetic = measured(drawn.options.cache)
    live.draw("planning ...")
    return diagnose(drawn.drawn, drawn.options, arithmetic, drawn.changeable)


def software() -> Iterator[Finding]:
    """Versions, and what is not installed. Imports none of it."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            yield Finding(name, "not installed", f"pip install {name}", missing=True)
            continue
        try:
            yield Finding(name, version(name), _version_advice(name, version(name)))
        except PackageNotFoundError:
            yield Finding(name, "installed, version unknown")


def _version_advice(name: str, found: str) -> str:
    if name != "transformers":
        return ""
    low, below = TRANSFORMERS
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if low <= numbers < below:
        return ""
    return f"tried with {low[0]}.{low[1]} to {below[0]}.{below[1] - 1}; pip install 'transformers>=5.17,<5.24'"


def hardware(cache: Path) -> Iterator[Finding]:
    """Processor, memory, accelerator, and the disk that the Stores are on."""
    from ..plan.machine import Machine

    machine = Machine.inspect()
    yield from _processor(machine)
    yield from _memory(machine)
    yield from _accelerator(machine)
    yield from _storage(cache)


def _processor(machine: "Machine") -> Iterator[Finding]:
    import torch

    from ..kernels import code_cache, instructions
    from ..kernels.draft_product import note

    yield Finding("processor", f"{machine.cpu}, {machine.cores} cores to use")
    known = _flags()
    flags = ", ".join(flag for flag in VECTORS if flag in known) or "none known"
    yield Finding("vectors", f"{flags} (torch uses {torch.backends.cpu.get_cpu_capability()})")
    ready = "machine code came with the package" if code_cache.ready_here() else "compiled at first use"
    yield Finding("kernels", f"{instructions.told()}, {ready}")
    yield Finding("4-bit drafting", "integer kernel on the processor", note())


def _flags() -> set[str]:
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return set()
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return set(" ".join(lines[:1]).split())


def _memory(machine: "Machine") -> Iterator[Finding]:
    from ..plan.cgroup import memory_limits
    from ..tiers.probe import probe_memory

    total = format_size(machine.total_memory)
    free = format_size(machine.memory_limit)
    yield Finding("memory", f"{total}, {free} of it free to use")
    limits = [group.limit for group in memory_limits()]
    yield Finding("container limit", format_size(min(limits)) if limits else "none")
    yield Finding("memory speed", rate(probe_memory()))


def _accelerator(machine: "Machine") -> Iterator[Finding]:
    if machine.gpu is None:
        yield Finding("GPU", "none that torch can use: the processor computes, the disk is the slow tier")
    else:
        memory = f"{format_size(machine.gpu.free_memory)} of {format_size(machine.gpu.total_memory)} free"
        yield Finding("GPU", f"{machine.gpu.name}, {memory}")


def _storage(cache: Path) -> Iterator[Finding]:
    from ..plan.machine import free_bytes
    from ..tiers.probe import probe_disk

    free = free_bytes(cache)
    yield Finding("Stores", f"{cache} ({_stores(cache)}, {format_size(free)} free)", _cache_advice(cache, free))
    file = largest(cache)
    if file is None:
        yield Finding("disk speed", "not measured: no Store yet", "understudy prepare MODEL, then ask again")
        return
    probe = probe_disk(file)
    how = "direct" if probe.direct else "through the page cache"
    value = f"{rate(probe.bytes_per_second)} {how}, {probe.threads} readers of {format_size(probe.block)}"
    yield Finding("disk speed", value, probe.note)


def _stores(cache: Path) -> str:
    count = sum(1 for _ in cache.glob("*/index.json"))
    return f"{count} prepared"


def _cache_advice(cache: Path, free: int) -> str:
    place = cache
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return f"{place} cannot be written: set UNDERSTUDY_CACHE to a directory that can"
    return "set UNDERSTUDY_CACHE to a directory on a larger disk" if free < 10 << 30 else ""


command = Command("what this machine has, how fast it is, what limits a model here", _declare, _run)
