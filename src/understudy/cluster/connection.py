"""The Ray cluster that replicas run on: one that is there already, or one of this machine's own that ends with the command."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnderstudyError, UsageError, quoted
from ..plan.machine import cores

# Seconds in which a cluster must take a connection: Ray itself would wait for minutes, without a word.
PATIENCE = 5.0
# Seconds after which Ray looks for the first time whether its proxy, which imports half of Ray, has started.
PROXY_PATIENCE = 30
# Shared memory of a cluster of one's own, in bytes: what goes through it is text.
OBJECTS = 128 << 20
AUTO = "auto"


@dataclass(frozen=True)
class ReplicaShare:
    """What each replica takes of its machine."""

    # Processors; 0: not decided yet.
    cpus: int
    # Bytes of host memory; 0: none is counted.
    memory: int
    gpus: int = 0

    def options(self) -> dict[str, Any]:
        """The same as the options of a Ray actor."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return {**found, "memory": self.memory} if self.memory else found

    def fitting(self, resources: dict[str, float]) -> int:
        """How many of them a machine with these resources has room for."""
        asked = {"CPU": self.cpus, "memory": self.memory, "GPU": self.gpus}
        return min(int(resources.get(name, 0.0) // amount) for name, amount in asked.items() if amount)


@contextmanager
def connected(address: str | None, replicas: int, place: ReplicaShare, program: str) -> Iterator[ReplicaShare]:
    """Be connected to the cluster at `address` (HOST:PORT, or "auto" for the one that this machine belongs to), or to one of
    this machine's own where it is None. It has room for `replicas` of `place`, whose processors are filled in where they were
    left open. `program`: the option that asked, for messages.

    Raises UsageError where there is no such cluster, or no room."""
    if address is None:
        _keep_strangers_out()
        _give_time()
    else:
        _reach(address)
    import ray

    here = cores()
    if address is None and not place.cpus:
        place = replace(place, cpus=max(here // replicas, 1))
    own = {"num_cpus": max(here, replicas * place.cpus), "object_store_memory": OBJECTS, "include_dashboard": False}
    where: dict[str, Any] = {"address": "local", **own} if address is None else {"address": address}
    what, advice = f"Cannot use the Ray cluster {address or 'of this machine'}", "One with a key needs RAY_AUTH_MODE=token here."
    with quoted(UnderstudyError, what, advice, ray.exceptions.RayError):
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not place.cpus:
            # A machine for each replica: it computes with all processors.
            place = replace(place, cpus=max(int(min(machine.get("CPU", 0.0) for machine in machines)), 1))
        room = sum(place.fitting(machine) for machine in machines)
        if room < replicas:
            raise UsageError(f"{program} {replicas} does not fit: the cluster has room for {room} that take {_words(place)} each.")
        yield place
    finally:
        ray.shutdown()


def _words(place: ReplicaShare) -> str:
    from ..plan.sizes import format_size

    parts = [f"{place.cpus} processors"]
    parts += [format_size(place.memory)] if place.memory else []
    parts += [f"{place.gpus} GPU"] if place.gpus else []
    return ", ".join(parts)


def _keep_strangers_out() -> None:
    """A cluster of one's own listens at the machine's address, and runs what it is told: it asks for a key, which lies nowhere
    but in its processes. Where the user has said how keys are handled, that holds."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _give_time() -> None:
    """With Ray's own 5 s its proxy is ended before it has started where a machine is busy. Where the user has said how long, that
    holds."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_PATIENCE))


def _reach(address: str) -> None:
    """Raise UsageError where nothing answers at `address`."""
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise UsageError(f"--ray-address must be HOST:PORT or {AUTO}, got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise UsageError(
            f"No Ray cluster answers at {address}: {error.strerror or error}. `ray status` there names its address."
        ) from None
