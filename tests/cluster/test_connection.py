"""What a replica takes of its machine, and what is told where it fails."""

import pytest

from understudy.cluster.connection import ReplicaShare
from understudy.errors import StoreError, UnderstudyError, UsageError


def test_as_many_fit_as_the_scarcest_of_all_resources_allows() -> None:
    machine = {"CPU": 16.0, "memory": 40.0, "GPU": 1.0}
    assert ReplicaShare(4, 0).fitting(machine) == 4
    assert ReplicaShare(4, 15).fitting(machine) == 2
    assert ReplicaShare(4, 15, 1).fitting(machine) == 1
    assert ReplicaShare(4, 15, 1).fitting({"CPU": 16.0, "memory": 40.0}) == 0
    assert ReplicaShare(4, 15).options() == {"num_cpus": 4, "num_gpus": 0, "memory": 15}


def test_the_error_of_a_replica_is_told_in_its_own_words() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'understudy[ray]'")
    from ray.exceptions import RayError

    from understudy.cluster.faults import told

    remote = "ray::Replica.__init__() (pid=1)\n  File ...\nunderstudy.errors.StoreError: The Store is damaged.\nmore"
    with pytest.raises(StoreError, match=r"^The Store is damaged\.$"), told("It failed"):
        raise RayError(remote)
    with pytest.raises(UnderstudyError, match=r"^It failed: the actor died\.$"), told("It failed"):
        raise RuntimeError("the actor died.\nand more")
    with pytest.raises(UsageError, match="own"), told("It failed"):
        raise UsageError("own")


def test_the_figures_of_all_replicas_are_one_text_that_prometheus_reads() -> None:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    from understudy.cluster.figures import joined

    def text(count: int) -> bytes:
        registry = CollectorRegistry()
        Counter("understudy:passes", "Sweeps.", ("model_name",), registry=registry).labels(model_name="m").inc(count)
        Histogram("understudy:seconds", "Time.", registry=registry, buckets=(1, 2)).observe(count)
        return generate_latest(registry)

    found = {family.name: family for family in text_string_to_metric_families(joined({"a": text(1), "b": text(2)}).decode())}
    totals = [sample for sample in found["understudy:passes"].samples if sample.name.endswith("_total")]
    passes = {sample.labels["replica"]: sample.value for sample in totals}
    assert passes == {"a": 1.0, "b": 2.0} and found["understudy:passes"].type == "counter"
    buckets = [sample for sample in found["understudy:seconds"].samples if sample.name.endswith("_bucket")]
    assert len(buckets) == 6 and found["understudy:seconds"].type == "histogram"
