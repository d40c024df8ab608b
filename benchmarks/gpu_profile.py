"""Where the time of levels and passes goes: kernels by torch's profiler, the host's work by Python's.

A kernel's time is the device's own. On a simulated device, torch's operations on the processor stand for kernels."""

import cProfile
import pstats
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_passes import NODES, Pass, below_the_prompt, fresh_search, most_nodes, often

Row = dict[str, Any]
TOP = 15
WIDTH = 8
LEVELS, PASSES, TOKENS = 5, 3, 64
COPIES = "Memcpy HtoD"
LONGEST_NAME = 90


@dataclass(frozen=True)
class Work:
    """Something done `times` times: what, and how."""

    what: str
    times: int
    run: Callable[[], None]


def profiled(llm: Any, kinds: Collection[str]) -> Row:
    """Profiles of levels, of passes or of both, and of a text, each per level, pass or text."""
    work: list[Work] = []
    if "passes" in kinds:
        below_the_prompt(llm)
        for count in (NODES[0], most_nodes(llm)):
            one = Pass.of(llm, count)
            one.timed()
            work.append(Work(f"pass of {count}", often(llm, PASSES), one.run))
    found = {each.what: examined(llm, each) for each in work}
    if llm.model.device.where == "cuda":
        found["text"] = examined(llm, Work("", 1, text_of(llm)))
    if "levels" in kinds:
        search = fresh_search(llm)
        width = min(WIDTH, search.widest)
        search.measure(width)
        found[f"level of {width}"] = examined(llm, Work("", often(llm, LEVELS), lambda: search.measure(width)))
    return found


def text_of(llm: Any) -> Callable[[], None]:
    from understudy import SamplingParams

    tokens = min(TOKENS, llm.context // 2)
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=0.0)
    prompt = list(range(7, 7 + min(TOKENS, llm.context - tokens)))
    llm.generate([prompt], params)

    def write() -> None:
        llm.engine.kept.clear()
        llm.generate([prompt], params)

    return write


def examined(llm: Any, work: Work) -> Row:
    """Kernels, then host functions, of `work`: two runs of it, since each of the two would slow the other."""
    device = llm.model.device
    on_gpu = device.where == "cuda"
    device.finish()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
        for _ in range(work.times):
            work.run()
        device.finish()
    found = kernels(list(watched.events()), work.times, on_gpu)
    host = cProfile.Profile()
    device.finish()
    start = time.perf_counter()
    host.runcall(lambda: [work.run() for _ in range(work.times)])
    found["profiled_host_ms"] = 1e3 * (time.perf_counter() - start) / work.times
    device.finish()
    return {**found, "functions": functions(pstats.Stats(host), work.times)}


def kernels(events: Iterable[Any], times: int, on_gpu: bool) -> Row:
    """Kernels and calls of the driver, each by name with count and milliseconds; what the device and the link left idle."""
    device = torch.autograd.DeviceType.CUDA
    wanted = [event for event in events if not on_gpu or event.device_type == device]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in wanted]
    copies = [span for span in spans if span[0].startswith(COPIES)]
    # What copies do is not the compute stream's.
    others = [span for span in spans if not span[0].startswith(COPIES)]
    found = {"kernels": len(others) / times, **busy(others, "kernel", times), "top": top(others, times)}
    if on_gpu:
        calls = [event for event in events if event.device_type != device]
        runtime = [(event.name, event.time_range.start, event.time_range.end) for event in calls]
        found |= {"copies": len(copies) / times, **busy(copies, "copy", times), "calls": top(runtime, times)}
    return found


def busy(spans: list[tuple[str, float, float]], what: str, times: int) -> Row:
    """Milliseconds in which at least one of `spans` (microseconds) was under way, and those between them when none was."""
    covered, idle, end = 0.0, 0.0, None
    for _, start, stop in sorted(spans, key=lambda span: span[1]):
        idle += 0.0 if end is None else max(0.0, start - end)
        covered += max(0.0, stop - (start if end is None else max(start, end)))
        end = stop if end is None else max(end, stop)
    return {f"{what}_ms": covered / 1e3 / times, f"{what}_idle_ms": idle / 1e3 / times}


def top(spans: Iterable[tuple[str, float, float]], times: int) -> list[Row]:
    """By name: how often and how long each time, those that take most of all first."""
    sums: dict[str, tuple[int, float]] = {}
    for name, start, stop in spans:
        count, total = sums.get(name, (0, 0.0))
        sums[name] = count + 1, total + stop - start
    ranked = sorted(sums.items(), key=lambda each: -each[1][1])[:TOP]
    return [{"name": name[:LONGEST_NAME], "count": count / times, "ms": total / 1e3 / times} for name, (count, total) in ranked]


def functions(stats: Any, times: int) -> list[Row]:
    """Python functions by the time they take themselves."""
    ranked = sorted(stats.stats.items(), key=lambda each: -each[1][2])[:TOP]
    return [
        {"name": f"{'/'.join(file.split('/')[-2:])}:{line} {name}", "count": calls / times, "ms": 1e3 * own / times}
        for (file, line, name), (_, calls, own, _, _) in ranked
    ]
