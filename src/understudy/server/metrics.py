"""Figures for Prometheus: vLLM's names under `understudy:`, and what is special here. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..api.answers import ReplyCounts
from ..request import Request

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
ACCEPTED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LABEL = "model_name"
# What is read of a loaded model's engine, and what each says.
GAUGES = {
    "num_requests_running": "Requests that have a cache row.",
    "num_requests_waiting": "Requests that wait for a cache row.",
    "kv_cache_usage_perc": "Share of the KV cache that running requests use, 0 to 1.",
    "ring_bytes": "Buffers that exact weights stream through.",
    "peak_memory_bytes": "The most fast memory that was held at once.",
}
TOTALS = {
    "passes": "Sweeps of the exact weights.",
    "pass_rows": "Requests that took part in passes, each pass counted.",
    "pass_nodes": "Nodes of all passes.",
    "link_bytes": "Exact weights that came over the link.",
    "link_busy_seconds": "Time in which the link was busy.",
    "link_wait_seconds": "Time in which passes waited for the link.",
    "draft_seconds": "Time of drafting.",
    "verify_seconds": "Time of passes, waiting for the link included.",
    "prefix_files_damaged": "Files of --prefix-cache that were damaged.",
    "prefix_bytes_read": "Bytes read from --prefix-cache.",
    "prefix_bytes_written": "Bytes written to --prefix-cache.",
}


class Metrics:
    """Counts the requests that end, by the names of their models, and reads the engines' own figures when it is asked."""

    def __init__(self, names: Iterable[str]):
        self.registry = CollectorRegistry()

        def counter(what: str, text: str, *more: str) -> Counter:
            return Counter(f"understudy:{what}", text, (LABEL, *more), registry=self.registry)

        def histogram(what: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"understudy:{what}", text, (LABEL,), registry=self.registry, buckets=buckets)

        self.success = counter("request_success", "Requests that ended, by the reason.", "finished_reason")
        self.rejections = counter("admission_rejections", "Requests that were turned away.", "reason")
        self.prompt = counter("prompt_tokens", "Tokens of prompts.")
        self.cached = counter("prompt_tokens_cached", "Tokens of prompts that did not have to be read again.")
        self.queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in the cache.")
        self.hits = counter("prefix_cache_hits", "Tokens of prompts that the cache held.")
        self.external = counter("external_prefix_cache_hits", "Tokens of prompts that came from --prefix-cache.")
        self.generated = counter("generation_tokens", "Tokens that were generated.")
        self.drafts = counter("spec_decode_num_drafts", "Trees that were drafted.")
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "Nodes that were drafted.")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Nodes that the target accepted.")
        self.first = histogram("time_to_first_token_seconds", "From a request to its first token.", SECONDS)
        self.whole = histogram("e2e_request_latency_seconds", "From a request to its end.", SECONDS)
        self.queue = histogram("request_queue_time_seconds", "From a request to its cache row.", SECONDS)
        self.prefill = histogram("request_prefill_time_seconds", "From a request's cache row to its first token.", SECONDS)
        self.decode = histogram("request_decode_time_seconds", "From a request's first token to its last.", SECONDS)
        self.per_pass = histogram("tokens_per_pass", "Tokens that a pass gave a request, on average.", ACCEPTED)
        self.new = histogram("request_generation_tokens", "Tokens generated for a request.", TOKENS)
        self.with_tools = counter("tool_requests", "Requests that might call tools.")
        self.calls = counter("tool_calls", "Calls of tools that were made.")
        self.reasoning = counter("reasoning_tokens", "Tokens that were reasoning, of those that were generated.")
        self.constrained = counter("grammar_requests", "Requests whose text had to fit a grammar.")
        self.refused = counter("grammar_rejections", "Grammars that could not be compiled.")
        self.compiling = histogram("grammar_compile_seconds", "Compiling a grammar.", SECONDS)
        self.loads = counter("model_loads", "Times that the model was loaded.")
        self.engines = EngineFigures(names)
        self.registry.register(self.engines)

    def loaded(self, name: str, llm: Any) -> None:
        """The model called `name` is loaded now."""
        self.loads.labels(name).inc()
        llm.maker.grammars.tell = partial(self.compiled, name)
        self.engines.loaded(name, llm)

    def unloaded(self, name: str) -> None:
        """The model called `name` is loaded no more; its counters stay."""
        self.engines.unloaded(name)

    def compiled(self, name: str, seconds: float, refused: bool) -> None:
        """Count a grammar of the model called `name` that was compiled, or could not be. May be called in any thread."""
        self.compiling.labels(name).observe(seconds)
        self.refused.labels(name).inc(refused)

    def answered(self, name: str, counts: ReplyCounts) -> None:
        """Count what was read out of the replies of an answer by the model called `name`."""
        self.with_tools.labels(name).inc(counts.with_tools)
        self.calls.labels(name).inc(counts.calls)
        self.reasoning.labels(name).inc(counts.reasoning)

    def ended(self, name: str, request: Request) -> None:
        """Count a request to the model called `name` that has ended. Called once for each, in any thread."""
        stats = request.meter.stats()
        queued = request.meter.queued
        reason = "error" if request.error is not None else str(request.sequence.finish_reason or "cancelled")
        self.success.labels(name, reason).inc()
        sums = (
            (self.prompt, stats.prompt_tokens),
            (self.cached, request.sequence.reused),
            (self.queries, 0 if queued is None else request.sequence.prompt_length),
            (self.hits, request.sequence.reused),
            (self.external, request.sequence.loaded),
            (self.generated, stats.new_tokens),
            (self.drafts, stats.rounds if stats.drafted else 0),
            (self.draft_tokens, stats.drafted),
            (self.accepted, stats.accepted),
            (self.constrained, request.sequence.grammar is not None),
        )
        for counted, amount in sums:
            counted.labels(name).inc(amount)
        if queued is not None:
            self.queue.labels(name).observe(queued)
        if stats.new_tokens:
            self.prefill.labels(name).observe(stats.ttft_seconds - (queued or 0.0))
            self.decode.labels(name).observe(stats.decode_seconds)
            self.first.labels(name).observe(stats.ttft_seconds)
            self.whole.labels(name).observe(stats.ttft_seconds + stats.decode_seconds)
            self.new.labels(name).observe(stats.new_tokens)
        if stats.rounds:
            self.per_pass.labels(name).observe(stats.mean_accepted)

    def rejected(self, name: str, reason: str) -> None:
        """Count a request to the model called `name` that was turned away."""
        self.rejections.labels(name, reason).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class EngineFigures(Collector):
    """The state of each model's scheduler, cache and link, read when it is asked for."""

    def __init__(self, names: Iterable[str]):
        # Each model, if it is loaded, and its counters up to when it was last unloaded. Both change together, or a look between
        # would count twice what was done.
        self._models: dict[str, tuple[Any, dict[str, float]]] = {name: (None, {}) for name in names}

    def loaded(self, name: str, llm: Any) -> None:
        """The model called `name` is loaded now."""
        self._models[name] = (llm, self._models[name][1])

    def unloaded(self, name: str) -> None:
        """The model called `name` is loaded no more: its counters go on from here when it is loaded again."""
        self._models[name] = (None, _totals(*self._models[name]))

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        loaded = GaugeMetricFamily("understudy:model_loaded", "1 while the model is loaded.", labels=[LABEL])
        found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, (llm, past) in self._models.items():
            loaded.add_metric([name], float(llm is not None))
            for what, value in {} if llm is None else gauges(llm).items():
                found.setdefault(what, GaugeMetricFamily(f"understudy:{what}", GAUGES[what], labels=[LABEL]))
                found[what].add_metric([name], value)
            for what, value in _totals(llm, past).items():
                found.setdefault(what, CounterMetricFamily(f"understudy:{what}", TOTALS[what], labels=[LABEL]))
                found[what].add_metric([name], value)
        yield loaded
        yield from found.values()


def _totals(llm: Any, past: Mapping[str, float]) -> dict[str, float]:
    """All counters of a model, whenever it was loaded: those of `llm`, which may be None, and those of the `past`."""
    now = {} if llm is None else counters(llm)
    return {what: past.get(what, 0.0) + now.get(what, 0.0) for what in TOTALS if what in past or what in now}


def running(llm: Any) -> list[Request]:
    """The requests that have a cache row."""
    # A request that has ended stays in the list until its pass is over.
    return [request for request in tuple(llm.scheduler.running) if not request.finished]


def gauges(llm: Any) -> dict[str, float]:
    """What of GAUGES is true of a loaded model now."""
    cache, requests = llm.engine.cache, running(llm)
    return {
        "num_requests_running": len(requests),
        "num_requests_waiting": len(llm.scheduler.waiting),
        "kv_cache_usage_perc": sum(cache.lengths[request.sequence.row] for request in requests) / (cache.rows * cache.capacity),
        "ring_bytes": llm.plan.ring_bytes,
        "peak_memory_bytes": llm.model.device.peak_bytes(),
    }


def counters(llm: Any) -> dict[str, float]:
    """What of TOTALS a model has since it was loaded."""
    clock, link = llm.engine.clock, llm.scheduler.counters()
    found = {
        "passes": clock.passes,
        "pass_rows": clock.rows,
        "pass_nodes": clock.nodes,
        "link_bytes": link.read,
        "link_busy_seconds": link.busy,
        "link_wait_seconds": link.wait,
        "draft_seconds": link.draft,
        "verify_seconds": link.verify,
    }
    if llm.prefixes is not None:
        files = llm.prefixes.files
        found |= {
            "prefix_files_damaged": files.damaged,
            "prefix_bytes_read": files.bytes_read,
            "prefix_bytes_written": files.bytes_written,
        }
    return found
