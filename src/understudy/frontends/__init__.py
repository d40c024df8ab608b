"""The command line. A command is one file here and one line in the table; a command's dependencies are its own.

Everything for people goes to stderr; stdout carries the text, the table, or the one JSON object."""

import importlib
import os
import sys
from collections.abc import Sequence

from .. import startup
from ..errors import UnderstudyError
from ..registry import find, lookup
from .parser import Command, Parser
from .streams import complain, guard

COMMANDS = {
    "run": "understudy.frontends.run:command",
    "chat": "understudy.frontends.chat:command",
    "batch": "understudy.frontends.batch:command",
    "serve": "understudy.frontends.serve:command",
    "plan": "understudy.frontends.plan:command",
    "pull": "understudy.frontends.pull:command",
    "ls": "understudy.frontends.ls:command",
    "rm": "understudy.frontends.rm:command",
    "prepare": "understudy.frontends.prepare:command",
    "train": "understudy.frontends.train:command",
    "export": "understudy.frontends.export:command",
    "verify": "understudy.frontends.verify:command",
    "bench": "understudy.frontends.bench:command",
    "scale": "understudy.frontends.scale:command",
    "doctor": "understudy.frontends.doctor:command",
    "completion": "understudy.frontends.completion:command",
}

# How often a thread looks whether the others are done before it sleeps: some hundred microseconds. Looking on, as is OpenMP's
# default, takes the processor from those that work, above all on a busy machine (docs/log.md).
SPINS = "5000"

# The exit status that shells report for a program ended by Ctrl-C.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """The `understudy` command: the exit status is 0, 1 (could not), 2 (wrong use) or 130 (Ctrl-C)."""
    guard()
    if argv is None:
        startup.own()
    # Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        status = _flushed(sys.argv[1:] if argv is None else list(argv))
    except UnderstudyError as error:
        if os.environ.get("UNDERSTUDY_DEBUG") == "1":
            raise
        complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        complain("stopped.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough.
        return 0
    return status


def _flushed(argv: list[str]) -> int:
    """The exit status of a command, once all that it wrote is where it should be."""
    try:
        status = _dispatch(argv)
    except SystemExit:
        # The parser ends the program after it has printed its help.
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _dispatch(argv: list[str]) -> int:
    if argv[:1] in (["--version"], ["-V"]):
        version = importlib.import_module("understudy").__version__
        print(f"understudy {version}")
        return 0
    if argv[:1] in (["--help"], ["-h"], ["help"]):
        print(_overview())
        return 0
    if not argv:
        print(_overview(), file=sys.stderr)
        return 2
    lookup("command", argv[0], COMMANDS)
    command: Command = find("command", COMMANDS, argv[0])
    parser = Parser(argv[0], command.summary)
    command.declare(parser)
    return command.run(parser.read(argv[1:]))


def _overview() -> str:
    lines = [
        "Runs a language model larger than its memory, exactly, drafted by its own 4-bit copy.",
        "",
        "usage: understudy COMMAND [MODEL] [options]",
        "",
    ]
    for name in COMMANDS:
        command: Command = find("command", COMMANDS, name)
        lines.append(f"  {name:11}{command.summary}")
    lines += [
        "",
        "MODEL is a Hugging Face id, a checkpoint directory or a Store directory; without one, the built-in demo.",
        "Try `understudy run`, or `understudy COMMAND --help` for a command's options.",
    ]
    return "\n".join(lines)
