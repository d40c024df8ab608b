"""Where a prompt comes from: the argument, a file, token ids, or what is piped in. One of them."""

import os
import select
import stat
import sys
from argparse import Namespace
from pathlib import Path

from ..demo import PROMPT
from ..errors import UsageError
from .live import Live


def prompt_of(args: Namespace, demo: bool, live: Live) -> str | list[int]:
    """The prompt of this command line; the built-in model has one of its own when nothing is said."""
    given = [name for name in ("prompt", "prompt_file", "prompt_ids") if getattr(args, name) is not None]
    if len(given) > 1:
        raise UsageError("Give one prompt: as the argument, with --prompt-file, or with --prompt-ids.")
    if args.prompt_ids is not None:
        if not args.prompt_ids:
            raise UsageError("The prompt is empty: --prompt-ids takes one token id or more.")
        return list(args.prompt_ids)
    text = _text(args, live)
    if text is None or (demo and not given and not text):
        if not demo:
            raise UsageError("No prompt: give it as an argument after MODEL, with --prompt-file, or on standard input.")
        live.say(PROMPT.rstrip("\n"))
        return PROMPT
    if not text:
        raise UsageError("The prompt is empty: give at least one character.")
    return text


def _text(args: Namespace, live: Live) -> str | None:
    if args.prompt is not None and args.prompt != "-":
        return _checked(os.fsencode(args.prompt), "the prompt")
    if args.prompt_file is not None:
        return read_text(args.prompt_file, "the prompt")
    if args.prompt == "-" or _piped():
        return _checked(_standard_input(live), "standard input")
    return None


def read_text(file: Path, what: str) -> str:
    """The text of `file`. UsageError, which says `what` it should be, where it cannot be read or is no UTF-8."""
    try:
        return _checked(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"Cannot read {what} from {file}: {error.strerror}.") from None


def _checked(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"Byte {error.start} of {source} is not UTF-8: save the text as UTF-8.") from None


def _piped() -> bool:
    """Whether someone sends a prompt: a pipe or a file, not a terminal, /dev/null or a closed descriptor."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _standard_input(live: Live) -> bytes:
    if not select.select([sys.stdin.fileno()], [], [], 1.0)[0]:
        live.say("Reading the prompt from standard input (end it with Ctrl-D) ...")
    return sys.stdin.buffer.read()
