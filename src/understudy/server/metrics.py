"""Figures for Prometheus: vLLM's names under `understudy:`, and what is special here. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..request import Request

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
ACCEPTED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# Names, what they mean, and values.
Figures = tuple[tuple[str, str, float], ...]


class Metrics:
    """Counts the requests of the model `name` that end, and reads the engine's own figures when it is asked."""

    def __init__(self, llm: Any, name: str):
        self.registry = CollectorRegistry()
        self.labels = {"model_name": name}

        def counter(what: str, text: str, *more: str) -> Counter:
            return Counter(f"understudy:{what}", text, ("model_name", *more), registry=self.registry)

        def histogram(what: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"understudy:{what}", text, ("model_name",), registry=self.registry, buckets=buckets)

        self.success = counter("request_success", "Requests that ended, by the reason.", "finished_reason")
        self.rejections = counter("admission_rejections", "Requests that were turned away.", "reason")
        self.prompt = counter("prompt_tokens", "Tokens of prompts.")
        self.cached = counter("prompt_tokens_cached", "Tokens of prompts that did not have to be read again.")
        self.queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in the cache.")
        self.hits = counter("prefix_cache_hits", "Tokens of prompts that the cache held.")
        self.loaded = counter("external_prefix_cache_hits", "Tokens of prompts that came from --prefix-cache.")
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
        self.registry.register(EngineFigures(llm, self.labels))

    def ended(self, request: Request) -> None:
        """Count a request that has ended. Called once for each, in any thread."""
        stats = request.meter.stats()
        queued = request.meter.queued
        reason = "error" if request.error is not None else str(request.sequence.finish_reason or "cancelled")
        self.success.labels(**self.labels, finished_reason=reason).inc()
        sums = (
            (self.prompt, stats.prompt_tokens),
            (self.cached, request.sequence.reused),
            (self.queries, 0 if queued is None else request.sequence.prompt_length),
            (self.hits, request.sequence.reused),
            (self.loaded, request.sequence.loaded),
            (self.generated, stats.new_tokens),
            (self.drafts, stats.rounds if stats.drafted else 0),
            (self.draft_tokens, stats.drafted),
            (self.accepted, stats.accepted),
        )
        for counted, amount in sums:
            counted.labels(**self.labels).inc(amount)
        if queued is not None:
            self.queue.labels(**self.labels).observe(queued)
        if stats.new_tokens:
            self.prefill.labels(**self.labels).observe(stats.ttft_seconds - (queued or 0.0))
            self.decode.labels(**self.labels).observe(stats.decode_seconds)
            self.first.labels(**self.labels).observe(stats.ttft_seconds)
            self.whole.labels(**self.labels).observe(stats.ttft_seconds + stats.decode_seconds)
            self.new.labels(**self.labels).observe(stats.new_tokens)
        if stats.rounds:
            self.per_pass.labels(**self.labels).observe(stats.mean_accepted)

    def rejected(self, reason: str) -> None:
        """Count a request that was turned away."""
        self.rejections.labels(**self.labels, reason=reason).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class EngineFigures(Collector):
    """The state of the scheduler, the cache and the link, read when it is asked for."""

    def __init__(self, llm: Any, labels: dict[str, str]):
        self.llm = llm
        self.labels = labels

    def running(self) -> list[Request]:
        """The requests that have a cache row."""
        # A request that has ended stays in the list until its pass is over.
        return [request for request in tuple(self.llm.scheduler.running) if not request.finished]

    def values(self) -> dict[str, float]:
        """All figures by their names."""
        return {name: value for name, _, value in (*self._gauges(), *self._totals())}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for name, text, value in self._gauges():
            family = GaugeMetricFamily(f"understudy:{name}", text, labels=list(self.labels))
            family.add_metric(list(self.labels.values()), value)
            yield family
        for name, text, value in self._totals():
            total = CounterMetricFamily(f"understudy:{name}", text, labels=list(self.labels))
            total.add_metric(list(self.labels.values()), value)
            yield total

    def _gauges(self) -> Figures:
        llm = self.llm
        cache, running = llm.engine.cache, self.running()
        held = sum(cache.lengths[request.sequence.row] for request in running) / (cache.rows * cache.capacity)
        return (
            ("num_requests_running", "Requests that have a cache row.", len(running)),
            ("num_requests_waiting", "Requests that wait for a cache row.", len(llm.scheduler.waiting)),
            ("kv_cache_usage_perc", "Share of the KV cache that running requests use, 0 to 1.", held),
            ("ring_bytes", "Buffers that exact weights stream through.", llm.plan.ring_bytes),
            ("peak_memory_bytes", "The most fast memory that was held at once.", llm.model.device.peak_bytes()),
        )

    def _totals(self) -> Figures:
        llm = self.llm
        clock, counters = llm.engine.clock, llm.scheduler.counters()
        totals: Figures = (
            ("passes", "Sweeps of the exact weights.", clock.passes),
            ("pass_rows", "Requests that took part in passes, each pass counted.", clock.rows),
            ("pass_nodes", "Nodes of all passes.", clock.nodes),
            ("link_bytes", "Exact weights that came over the link.", counters.read),
            ("link_busy_seconds", "Time in which the link was busy.", counters.busy),
            ("link_wait_seconds", "Time in which passes waited for the link.", counters.wait),
            ("draft_seconds", "Time of drafting.", counters.draft),
            ("verify_seconds", "Time of passes, waiting for the link included.", counters.verify),
        )
        if llm.prefixes is not None:
            files = llm.prefixes.files
            totals += (
                ("prefix_files_damaged", "Files of --prefix-cache that were damaged.", files.damaged),
                ("prefix_bytes_read", "Bytes read from --prefix-cache.", files.bytes_read),
                ("prefix_bytes_written", "Bytes written to --prefix-cache.", files.bytes_written),
            )
        return totals
