"""Replicas behind one port: each is the application of `server.app` over one model, in a process that Ray Serve watches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp

from ..errors import UsageError, first_line
from ..llm import LLM
from ..server.app import create_app
from ..server.callers import is_loopback
from ..server.models import ServedModels
from ..server.settings import Settings
from .connection import ReplicaShare
from .faults import plain, reason, told
from .figures import joined

NAME = "understudy"
NOT_LOADED = "The replicas cannot be loaded"
# Requests to a replica that are not for its model, such as whether it is well, beside those that run and wait.
ASIDE = 8
# Seconds between two looks at a replica, and those that an answer may take: a prompt that is read takes the interpreter's lock.
LOOK, PATIENCE = 5.0, 60.0
# A request header with the name of a conversation: its turns go to one replica, which holds their beginning.
ROUTERS = {
    False: "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    True: "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
}


@dataclass(frozen=True)
class ReplicaGroup:
    """How many replicas there are, and how requests come to them."""

    # At least, and at most: between them the number follows the requests that run and wait.
    least: int
    most: int
    # Requests that a replica runs together.
    rows: int
    # Seconds that requests have to finish once a replica is told to end.
    drain: int
    # Do all requests with one `x-session-id` go to one replica?
    sticky: bool = False


@serve.ingress()
class Replica:
    """One model and its application; Ray makes it once for each replica."""

    def __init__(self, model: str | None, options: dict[str, Any], settings: Settings):
        self.llm = LLM(model, **options)
        self.application = create_app(self.llm, settings, self.figures_of_all, self.name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.application

    @property
    def name(self) -> str:
        """What Ray calls this replica."""
        return str(serve.get_replica_context().replica_id.unique_id)

    def figures(self) -> tuple[str, bytes]:
        """The name of this replica, and its figures for Prometheus."""
        models: ServedModels = self.application.state.models
        return self.name, models.metrics.text()

    async def figures_of_all(self) -> bytes:
        """Those of every replica."""
        found = serve.get_deployment_handle(NAME, NAME).broadcast("figures")
        return joined(dict(await found.results_async(timeout_s=PATIENCE)))

    def check_health(self) -> None:
        """Raise where no request is served any more: Ray puts another replica in the place of this one."""
        models: ServedModels = self.application.state.models
        if models.fault:
            raise RuntimeError(models.fault)


def start(model: str | None, options: dict[str, Any], settings: Settings, group: ReplicaGroup, place: ReplicaShare) -> None:
    """Load the replicas; they serve when this returns. Raises UnderstudyError where one cannot be loaded."""
    replica = serve.deployment(Replica, name=NAME).options(
        **_count(group),
        ray_actor_options=place.options(),
        max_ongoing_requests=group.rows + settings.max_queue + ASIDE,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=group.drain,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=LOOK,
        health_check_timeout_s=PATIENCE,
        request_router_config={"request_router_class": ROUTERS[group.sticky]},
    )
    with told(NOT_LOADED):
        try:
            serve.run(replica.bind(model, options, settings), name=NAME)
        except RuntimeError as error:
            application = serve.status().applications.get(NAME)
            why = "" if application is None else application.deployments[NAME].message
            raise plain(why, f"{NOT_LOADED}: {reason(why) or first_line(error)}. Their logs say more (`ray logs`).") from None


def _count(group: ReplicaGroup) -> dict[str, Any]:
    """How many replicas there are, as Ray Serve is told."""
    if group.most == group.least:
        return {"num_replicas": group.least}
    # More than run together wait: another replica is asked for.
    bounds = {"min_replicas": group.least, "max_replicas": group.most, "target_ongoing_requests": group.rows}
    return {"autoscaling_config": bounds}


def listen(host: str, port: int, **tls: Any) -> None:
    """Open the port: on every machine that has a replica, or on this one alone where it is for this machine alone.

    Raises UsageError where Ray Serve runs on the cluster already, whose port cannot be chosen any more."""
    if any(actor["name"] == "SERVE_CONTROLLER_ACTOR" for actor in ray.util.list_named_actors(all_namespaces=True)):
        raise UsageError("Ray Serve runs on that cluster already, with a port of its own: `serve shutdown` there ends it.")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with told(f"Cannot listen at {host} port {port}"):
        serve.start(
            proxy_location="HeadOnly" if is_loopback(host) else "EveryNode",
            http_options={"host": host, "port": port, **tls},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )


def stop(ends: bool) -> None:
    """Take no more requests, let those that run finish, and end all replicas; Ray Serve too, where the cluster does not end."""
    with told("The replicas cannot be ended"):
        serve.delete(NAME)
        if not ends:
            serve.shutdown()
