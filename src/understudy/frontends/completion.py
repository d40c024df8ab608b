"""`understudy completion`: a script for a shell, made by shtab of all commands and their options."""

import argparse
from argparse import Namespace
from pathlib import Path

from ..errors import UsageError
from ..registry import find
from . import COMMANDS
from .parser import Command, Parser

SHELLS = ("bash", "zsh", "fish")
MISSING = "understudy completion needs shtab: pip install 'understudy[completion]'."


def _declare(parser: Parser) -> None:
    told = "in ~/.bashrc `source <(understudy completion bash)`; the same for zsh, in ~/.zshrc after compinit"
    parser.add_argument("shell", choices=SHELLS, help=f"{told}; for fish `understudy completion fish | source`")


def _run(args: Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise UsageError(MISSING) from None
    script = shtab.complete(whole_parser(shtab.FILE, shtab.DIRECTORY), args.shell)
    # shtab's script for zsh knows that it is evaluated, and not that it is sourced.
    print(script.replace("== eval ]]", "== (eval|file) ]]") if args.shell == "zsh" else script)
    return 0


def whole_parser(file: object, directory: object) -> argparse.ArgumentParser:
    """All commands in one parser. `file` and `directory`: how shtab marks values that are those."""
    whole = argparse.ArgumentParser("understudy")
    commands = whole.add_subparsers(dest="command")
    for name in COMMANDS:
        command: Command = find("command", COMMANDS, name)
        own = Parser(name, command.summary)
        command.declare(own)
        for action in own._actions:
            _describe(action, file, directory)
        commands.add_parser(name, help=command.summary, parents=[own], add_help=False, conflict_handler="resolve")
    return whole


def _describe(action: argparse.Action, file: object, directory: object) -> None:
    """Say what completes the value of an option or a word."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar.startswith("DIR"):
        action.complete = directory  # type: ignore[attr-defined]
    elif action.type is Path or metavar.endswith(".jsonl") or action.dest in ("model", "models", "store"):
        action.complete = file  # type: ignore[attr-defined]
    elif "|" in metavar and action.choices is None and metavar.replace("|", "").replace("-", "").isalnum():
        # The words that an option takes stand in its help.
        action.choices = [word for word in metavar.split("|") if not word.isupper()]


command = Command("completion of commands and options for a shell", _declare, _run)
