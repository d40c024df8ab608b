"""What a replica takes of its machine, and what is told where it fails."""

import os
from pathlib import Path

import pytest

from understudy.cluster import connection
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
    for error in (TimeoutError("not there after 60s."), RayError("not there after 60s.")):
        with pytest.raises(UnderstudyError, match=r"^It failed: not there after 60s\.$"), told("It failed"):
            raise error
    with pytest.raises(UsageError, match="own"), told("It failed"):
        raise UsageError("own")


def test_ray_has_time_to_start_its_proxy_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
    for given, holds in ((None, "30"), ("7", "7")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {} if given is None else {name: given})
            connection._give_time()
            assert os.environ == {name: holds}
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'understudy[ray]'")
    from ray.serve._private import constants

    # Ray still asks for it by this name.
    assert name in Path(constants.__file__).read_text()


DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: {}\n\tactor_id: 4e8a01\n\tpid: 71\n"
    "\tname: X\n\tnamespace: serve\n\tip: 10.0.0.2\nThe actor is dead because its worker process has died. Worker exit type: "
    "SYSTEM_ERROR Worker exit detail: End of file. Some common causes include: (1) many.\nmore"
)
ENDED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ProxyActor\n\tactor_id: 9d22\n\tnamespace: serve\n"
    "The actor is dead because it was killed by `ray.kill`."
)
UNMADE = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::ProxyActor.__init__()\x1b[39m (pid=7)\n"
    "  File \"a.py\", line 1, in b\nRuntimeError: Failed to bind to 10.0.0.2:80.\n"
)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (DIED.format("ServeReplica:understudy:understudy"), "a replica (pid 71, ip 10.0.0.2) has died: its worker process has"),
        (f"It failed 3 times. Error:\n{DIED.format('ServeController')}", "the controller of Ray Serve (pid 71, ip 10.0.0.2) has"),
        (DIED.format("MapWorker"), "MapWorker (pid 71, ip 10.0.0.2) has died: its worker process has died."),
        (ENDED, "the proxy of Ray Serve has died: Ray ended it, since it did not start in time. Try again"),
        (UNMADE, "a process of Ray could not start: RuntimeError: Failed to bind to 10.0.0.2:80"),
    ],
)
def test_an_actor_that_died_is_told_with_its_name_and_of_what(said: str, says: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'understudy[ray]'")
    from ray.exceptions import RayError

    from understudy.cluster.faults import told

    with pytest.raises(UnderstudyError) as error, told("It failed"):
        raise RayError(said)
    assert str(error.value).startswith(f"It failed: {says}") and "\n" not in str(error.value)
    assert ("End of file. The system may have ended it for its memory" in str(error.value)) == ("End of file" in said)


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
