"""The figures of all replicas in one text for Prometheus: whichever of them is asked answers for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class JoinedFigures(Collector):
    """The families of several texts, each sample with the label `replica`."""

    def __init__(self, texts: Mapping[str, bytes]):
        self.texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for family in text_string_to_metric_families(text.decode()):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
        yield from families.values()


def joined(texts: Mapping[str, bytes]) -> bytes:
    """One text of those of all replicas, by their names."""
    registry = CollectorRegistry()
    registry.register(JoinedFigures(texts))
    return bytes(generate_latest(registry))
