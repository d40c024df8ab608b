"""`understudy serve`: a model behind the OpenAI API."""

from __future__ import annotations

import importlib
import os
import signal
import ssl
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..plan.conversation import Conversation
from . import opening
from .beyond import check_replicas, cluster, declare_replicas, elsewhere, options_of_replicas, planned
from .live import Live, Progress
from .model import served_models
from .options import (
    CONFIG_FILE,
    DEFAULTS,
    METHOD,
    PLACEMENT,
    QUIET,
    REQUESTS,
    count,
    declare,
    number,
    placement_for_clients,
)
from .parser import Command, Parser

if TYPE_CHECKING:
    from ..server.models import ServedModels
    from ..sources import Report

MISSING = "understudy serve needs the extra packages of a server: pip install 'understudy[serve]'."


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="the model (default: the built-in demo); of several, those are loaded that requests name, and that memory holds",
    )  # fmt: skip
    declare(parser, PLACEMENT, METHOD, DEFAULTS, REQUESTS, CONFIG_FILE, (QUIET,))
    group = parser.add_argument_group("server")
    group.add_argument(
        "--model", action="append", metavar="NAME=MODEL", help="a model that requests call NAME; may be given several times"
    )
    group.add_argument(
        "--turn", default=30.0, type=number, metavar="SECONDS",
        help="of several models, how long one that is in use keeps its place while another is asked for (default 30)",
    )  # fmt: skip
    group.add_argument(
        "--plan-for",
        metavar="clients=4,turns=20,prompt=64,reply=192",
        help="hold so many conversations: sets --rows and --context (`understudy plan --chat` says what that takes)",
    )
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: this machine alone)")
    group.add_argument("--port", default=8000, type=count, metavar="N", help="the port (default 8000)")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="a key that clients must send; may be given several times"
    )
    group.add_argument("--no-page", action="store_true", help="only the API: no page for conversations at /")
    group.add_argument("--max-queue", default=64, type=count, metavar="N", help="requests that may wait (default 64)")
    group.add_argument(
        "--request-timeout", default=0.0, type=number, metavar="SECONDS", help="the longest a request may take (default: any)"
    )
    group.add_argument("--allowed-host", action="append", metavar="NAME", help="another name of this server in the Host header")
    group.add_argument("--allowed-origin", action="append", metavar="URL", help="a web page's origin that may call (CORS)")
    group.add_argument(
        "--drain", default=30, type=count, metavar="SECONDS", help="time to finish what runs after SIGTERM (default 30)"
    )
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="TLS certificate")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="TLS key")
    group.add_argument(
        "--ssl-ca-certs", type=Path, metavar="FILE", help="authorities of which one must have signed a client's certificate"
    )
    group.add_argument(
        "--receive-timeout",
        default=30.0,
        type=number,
        metavar="SECONDS",
        help="the longest a request may take to arrive (default 30)",
    )
    group.add_argument(
        "--body-limit", default=32, type=count, metavar="MIB", help="the largest body of a request, in MiB (default 32)"
    )
    group = declare_replicas(parser)
    group.add_argument(
        "--max-replicas", type=count, metavar="N", help="more of them where requests wait, up to N (default: --replicas)"
    )
    group.add_argument(
        "--session-affinity", action="store_true", help="requests with one x-session-id header go to one of them"
    )


def _run(args: Namespace) -> int:
    models = served_models(args.models, args.model or (), args.served_model_name)
    try:
        # Missed before all that takes longer is imported.
        importlib.import_module("uvicorn")
        with opening.lean():
            from ..server import callers
            from ..server.listen import Listener, bound
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error.name} is missing)") from None
    _check(args)
    _plan_for(args)
    check_replicas(args, "--replicas", args.replicas is not None, args.replicas or 0)
    live = Live(args.quiet)
    if args.ssl_certfile and (note := callers.out_of_date(str(args.ssl_certfile), str(args.ssl_keyfile))):
        live.say(note)
    if args.replicas is not None:
        if len(models) > 1:
            raise UsageError(f"--replicas are of one model, and {len(models)} were given.")
        # What holds the port is found out before any model is loaded.
        for own in bound(args.host, args.port):
            own.close()
        ((name, model),) = models.items()
        return _run_replicas(args, model, name, live)
    with Listener(_settings(args, next(iter(models))), args.host, args.port, args.drain, **_tls(args)) as listener, terminating():
        shown = Progress(live)

        def report(stage: str, done: float, total: float) -> None:
            shown(stage, done, total)
            listener.gate.loading.report(stage, done, total)

        served = _loaded(args, models, report)
        live.clear()
        page = "" if args.no_page else f" A page is at {_url(args)}/."
        live.say(f"Serving {_told(served, _url(args))}{page} Ctrl-C ends it.")
        ended_by = listener.serve(served)
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    return 0


def _loaded(args: Namespace, models: Mapping[str, str | None], report: Report) -> ServedModels:
    """The models to serve, of which the first is loaded."""
    opening.llm()
    from ..server.models import ServedModels
    from ..shelf import ModelShelf

    shelf = ModelShelf(models, placement_for_clients(args), report)
    first = next(iter(models))
    if len(models) > 1:
        shelf.check()
    served = ServedModels(list(models), _settings(args, first), shelf, args.turn)
    served.put(first, shelf.load(first, {}, threading.Event()))
    return served


def _told(served: ServedModels, url: str) -> str:
    """What is served, where, and how much of it at once."""
    llm = served.loaded[served.first].llm
    room = f"{llm.plan.rows} requests together, {llm.context} tokens each"
    if len(served.places) == 1:
        return f"{served.first} at {url}/v1: {room}."
    return f"{', '.join(served.places)} at {url}/v1. {served.first} is loaded: {room}. Others are loaded when requests name them."


def _run_replicas(args: Namespace, model: str | None, name: str, live: Live) -> int:
    """Serve by replicas until a signal comes."""
    options = options_of_replicas(args)
    model = None if model is None else elsewhere(model)
    plan = planned(model, options)
    most = args.max_replicas or args.replicas
    with terminating(), cluster(args, args.replicas, "--replicas") as place:
        from ..cluster import replicas

        replicas.listen(args.host, args.port, **_tls_files(args))
        try:
            live.say(f"Loading {args.replicas} replicas of {name}, {place.cpus} processors each ...")
            group = replicas.ReplicaGroup(args.replicas, most, plan.rows, args.drain, args.session_affinity)
            replicas.start(model, options, _settings(args, name), group, place)
            room = f"{args.replicas} replicas, {plan.rows} requests together in each, {plan.context} tokens each"
            live.say(f"Serving {name} at {_url(args)}/v1: {room}. Ctrl-C ends it.")
            ended_by = until_signal()
        finally:
            replicas.stop(ends=args.ray_address is None)
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    return 0


def until_signal() -> int:
    """The signal that ends the program, once it has come."""
    came: list[int] = []
    news = threading.Event()

    def hear(sig: int, frame: object) -> None:
        came.append(sig)
        news.set()

    before = {sig: signal.signal(sig, hear) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not news.wait(1.0):
            pass
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    return came[0]


@contextmanager
def terminating() -> Iterator[None]:
    """While this is entered, SIGTERM ends the program as Ctrl-C does, also where it is the first process of a container."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(args: Namespace) -> None:
    """Refuse what no server can do before the model is loaded."""
    if args.port > 65535:
        raise UsageError(f"--port must be from 1 to 65535, got {args.port}.")
    if bool(args.ssl_certfile) != bool(args.ssl_keyfile):
        raise UsageError("TLS needs both --ssl-certfile and --ssl-keyfile.")
    if args.ssl_ca_certs and not args.ssl_certfile:
        raise UsageError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile too.")
    for file in filter(None, (args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs)):
        if not file.is_file():
            raise UsageError(f"There is no file {file}.")
    if not 0 <= args.request_timeout < float("inf"):
        raise UsageError(f"--request-timeout must be 0 (any) or more, got {args.request_timeout}.")
    if args.ssl_ca_certs and args.replicas is not None:
        raise UsageError("--ssl-ca-certs is not for --replicas: Ray's port would let in clients without a certificate.")
    if not 0 <= args.turn < float("inf"):
        raise UsageError(f"--turn must be 0 or more, got {args.turn}.")
    if not 0 < args.receive_timeout < float("inf"):
        raise UsageError(f"--receive-timeout must be above 0, got {args.receive_timeout}.")
    if args.ssl_certfile:
        # Here, for replicas too: Ray's port would die by them without a word.
        from ..server.callers import check_certificates

        check_certificates(**{name.removeprefix("ssl_"): file for name, file in _tls_files(args).items()})


def _plan_for(args: Namespace) -> None:
    """Set the rows and the context that the conversations of --plan-for need. UsageError where either was given otherwise."""
    if args.plan_for is None:
        return
    conversation = Conversation.parse(args.plan_for, "--plan-for")
    conversation.check_reserved("--plan-for", args.rows, args.context)
    args.rows = conversation.clients
    args.context = conversation.tokens


def _settings(args: Namespace, name: str) -> Any:
    from ..server.callers import checked_keys, checked_origins, host_names
    from ..server.settings import Settings

    return Settings(
        model_name=name,
        api_keys=checked_keys(args.api_key or filter(None, [os.environ.get("UNDERSTUDY_API_KEY")])),
        max_queue=args.max_queue,
        request_timeout=args.request_timeout,
        hosts=host_names(args.host, args.allowed_host or ()),
        origins=checked_origins(args.allowed_origin or ()),
        receive_timeout=args.receive_timeout,
        body_limit=args.body_limit << 20,
        page=not args.no_page,
    )


def _tls_files(args: Namespace) -> dict[str, Any]:
    """The files of certificates that were given."""
    files = {"ssl_certfile": args.ssl_certfile, "ssl_keyfile": args.ssl_keyfile, "ssl_ca_certs": args.ssl_ca_certs}
    return {name: str(file.absolute()) for name, file in files.items() if file is not None}


def _tls(args: Namespace) -> dict[str, Any]:
    """What uvicorn is told of certificates."""
    given = _tls_files(args)
    if args.ssl_ca_certs:
        given["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    return given


def _url(args: Namespace) -> str:
    from ..server.callers import in_url

    scheme = "https" if args.ssl_certfile else "http"
    return f"{scheme}://{in_url(args.host)}:{args.port}"


command = Command("a server with the OpenAI API", _declare, _run)
