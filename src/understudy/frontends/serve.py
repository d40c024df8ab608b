"""`understudy serve`: a model behind the OpenAI API."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .live import Live, Progress
from .model import DEMO, resolve
from .options import DEFAULTS, METHOD, PLACEMENT, QUIET, count, declare, number, placement
from .parser import Command, Parser

MISSING = "understudy serve needs the extra packages of a server: pip install 'understudy[serve]'."


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    declare(parser, PLACEMENT, METHOD, DEFAULTS, (QUIET,))
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: this machine alone)")
    group.add_argument("--port", default=8000, type=count, metavar="N", help="the port (default 8000)")
    group.add_argument("--rows", type=count, metavar="N", help="requests that run together (default: what the memory suits)")
    group.add_argument("--served-model-name", metavar="NAME", help="what clients call the model (default: its directory or id)")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="a key that clients must send; may be given several times"
    )
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


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    try:
        from ..server.listen import listen, try_address
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error.name} is missing)") from None
    _check(args)
    try_address(args.host, args.port)
    live = Live(args.quiet)
    from ..llm import LLM

    options = {name: value for name, value in placement(args).items() if name != "rows"}
    if args.rows is not None:
        options["rows"] = args.rows
    with LLM(model, progress=Progress(live), **options) as llm:
        live.clear()
        name = args.served_model_name or (DEMO if model is None else Path(model).name or model)
        room = f"{llm.plan.rows} requests together, {llm.context} tokens each"
        live.say(f"Serving {name} at {_url(args)}/v1: {room}. Ctrl-C ends it.")
        listen(llm, _settings(args, name), **_uvicorn(args))
    return 0


def _check(args: Namespace) -> None:
    """Refuse what no server can do before the model is loaded."""
    if args.port > 65535:
        raise UsageError(f"--port must be from 1 to 65535, got {args.port}.")
    if bool(args.ssl_certfile) != bool(args.ssl_keyfile):
        raise UsageError("TLS needs both --ssl-certfile and --ssl-keyfile.")
    for file in filter(None, (args.ssl_certfile, args.ssl_keyfile)):
        if not file.is_file():
            raise UsageError(f"There is no file {file}.")
    if not 0 <= args.request_timeout < float("inf"):
        raise UsageError(f"--request-timeout must be 0 (any) or more, got {args.request_timeout}.")


def _settings(args: Namespace, name: str) -> Any:
    from ..server.settings import LOOPBACK, Settings

    # A server that others can reach has names that are not known here; its key protects it.
    hosts = (*LOOPBACK, *(args.allowed_host or ())) if _name(args.host) in LOOPBACK or args.allowed_host else ()
    keys = tuple(args.api_key or filter(None, [os.environ.get("UNDERSTUDY_API_KEY")]))
    return Settings(
        model_name=name,
        api_keys=keys,
        max_queue=args.max_queue,
        request_timeout=args.request_timeout,
        hosts=hosts,
        origins=tuple(args.allowed_origin or ()),
    )


def _uvicorn(args: Namespace) -> dict[str, Any]:
    """What uvicorn is told."""
    tls = {"ssl_certfile": args.ssl_certfile, "ssl_keyfile": args.ssl_keyfile}
    given = {name: str(file) for name, file in tls.items() if file is not None}
    return {"host": args.host, "port": args.port, "drain": args.drain, **given}


def _url(args: Namespace) -> str:
    scheme = "https" if args.ssl_certfile else "http"
    return f"{scheme}://{_name(args.host)}:{args.port}"


def _name(address: str) -> str:
    """An address as it stands in a URL and in the Host header."""
    return f"[{address}]" if ":" in address else address


command = Command("a server with the OpenAI API", _declare, _run)
