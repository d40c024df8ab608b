"""`understudy batch`: a file of requests, answered line by line into another file, that goes on where it was stopped."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import UnderstudyError, UsageError
from . import INTERRUPTED, opening
from .beyond import check_replicas, cluster, declare_replicas, elsewhere, options_of_replicas, planned
from .live import Live, Progress
from .model import resolve, served_name
from .options import CONFIG_FILE, DEFAULTS, METHOD, OUTPUT, PLACEMENT, REQUESTS, count, declare, placement_for_clients
from .parser import Command, Parser
from .show import duration, to_json

if TYPE_CHECKING:
    from ..jobs.job import BatchJob
    from ..jobs.ledger import Output

    # A job, what runs it, and how many requests run together.
    Working = tuple[BatchJob, Callable[[], None], int]


def _declare(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model (default: the built-in demo)")
    parser.add_argument("input", metavar="IN.jsonl", help="OpenAI's batch records, one a line; - reads standard input")
    declare(parser, PLACEMENT, METHOD, DEFAULTS, REQUESTS, CONFIG_FILE, OUTPUT)
    group = parser.add_argument_group("batch")
    group.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT.jsonl",
        help="where answers go, each as soon as it is done; what is there already is not done again",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="begin anew: what OUT.jsonl holds is deleted")
    group.add_argument(
        "--window", type=count, metavar="N",
        help="requests at once: those that run and those that wait for a place (default: twice those that run)",
    )  # fmt: skip
    group = declare_replicas(parser)
    group.add_argument("--ray", action="store_true", help="answer on Ray, by as many replicas as --replicas says (default 1)")


def _run(args: Namespace) -> int:
    model = resolve(args.model)
    if args.replicas is not None and not args.ray:
        raise UsageError("--replicas is for --ray, which was not given.")
    check_replicas(args, "--ray", args.ray, args.replicas or 1)
    name = served_name(model, args.served_model_name)
    live = Live(args.quiet)
    with _opened(args.input, args.output, live) as file:
        with opening.lean():
            from ..jobs.ledger import Index, Output

        reading = Progress(live)
        index = Index.of(file, lambda done, total: reading("reading the requests", done, total))
        live.clear()
        if not len(index):
            raise UsageError(f"There is no request in {args.input}: it takes one JSON object a line.")
        output = Output(args.output, index, name, args.overwrite)
        try:
            return _answer(args, model, file, output, live)
        finally:
            output.close()


@contextmanager
def _opened(given: str, output: Path, live: Live) -> Iterator[BinaryIO]:
    """The input, to be read twice. One that cannot be, such as a pipe, is copied to a temporary file first."""
    with ExitStack() as stack:
        try:
            source = sys.stdin.buffer if given == "-" else stack.enter_context(Path(given).open("rb"))
        except OSError as error:
            raise UsageError(f"Cannot read {given}: {error.strerror}.") from None
        if output.exists() and os.path.samestat(os.fstat(source.fileno()), output.stat()):
            raise UsageError(f"--output is {given} itself: give another file.")
        if not source.seekable():
            if source.isatty():
                live.say("Reading requests from standard input (end it with Ctrl-D) ...")
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, copy)
            source = copy
        source.seek(0)
        yield source


def _answer(args: Namespace, model: str | None, file: BinaryIO, output: Output, live: Live) -> int:
    """Answer what is left, and say how it went."""
    before, total = output.finished, len(output.index)
    began = time.monotonic()
    found: dict[str, Any] = {"output": str(output.path), "lines": total, "answered_before": before, "new_tokens": 0, "ignored": []}
    if before < total:
        counted = Progress(live, "lines")
        work = _on_ray if args.ray else _here
        with work(args, model, file, output, live) as (job, run, together):
            live.say(f"{total - before:,} of {total:,} requests are left to answer, {together} together.")
            counted("answering", before, total)
            job.told = lambda: counted("answering", output.finished, total)
            began = time.monotonic()
            try:
                run()
            except (KeyboardInterrupt, UnderstudyError) as error:
                live.end()
                live.say(f"{output.finished:,} of {total:,} lines are done. The same command goes on from there.")
                if isinstance(error, UnderstudyError):
                    raise
                return INTERRUPTED
            live.clear()
            found |= {"new_tokens": job.tokens, "ignored": sorted(job.ignored)}
    seconds = time.monotonic() - began
    found |= {"answered": total - output.failed, "failed": output.failed, "seconds": seconds}
    _tell(found, live)
    if args.json:
        print(to_json(found))
    return 1 if output.failed else 0


@contextmanager
def _here(args: Namespace, model: str | None, file: BinaryIO, output: Output, live: Live) -> Iterator[Working]:
    """The job on one model in this process."""
    from ..api.settings import AnswerSettings
    from ..jobs.run import Job

    with opening.llm()(model, progress=Progress(live), **placement_for_clients(args)) as llm:
        live.clear()
        job = Job(AnswerSettings(output.model_name), file, output, args.window or 2 * llm.plan.rows)
        yield job, partial(job.run, llm), llm.plan.rows


@contextmanager
def _on_ray(args: Namespace, model: str | None, file: BinaryIO, output: Output, live: Live) -> Iterator[Working]:
    """The job on replicas."""
    from ..api.settings import AnswerSettings

    options = options_of_replicas(args)
    model = None if model is None else elsewhere(model)
    plan = planned(model, options)
    replicas = args.replicas or 1
    with cluster(args, replicas, "--replicas") as place:
        from ..cluster.lines import ClusterJob

        job = ClusterJob(AnswerSettings(output.model_name), file, output, args.window or 2 * plan.rows)
        yield job, partial(job.run, model, options, replicas, place), replicas * plan.rows


def _tell(found: dict[str, Any], live: Live) -> None:
    """The closing lines."""
    parts = [f"{found['lines']:,} lines", f"{found['answered']:,} answered"]
    if found["failed"]:
        parts.append(f"{found['failed']:,} failed: `error` in their records says why")
    if found["answered_before"]:
        parts.append(f"{found['answered_before']:,} were done before")
    if tokens := found["new_tokens"]:
        seconds = found["seconds"]
        parts.append(f"{tokens:,} tokens in {duration(seconds)}, {tokens / max(seconds, 1e-9):.1f} tok/s")
    if found["ignored"]:
        live.say(f"Fields that change nothing here: {', '.join(found['ignored'])}.")
    live.say(" · ".join(parts))


command = Command("a file of requests, answered into another", _declare, _run)
