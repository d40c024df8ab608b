"""Command lines. A mistake is one line with the nearest valid name; nothing here imports more than argparse."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from ..errors import UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors, and which takes words and options in any order."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(f"understudy {name}", description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; UsageError for whatever this command does not know."""
        args, extra = self.parse_known_intermixed_args(list(argv))
        if not extra:
            return args
        option, _, _ = extra[0].partition("=")
        if not option.startswith("-"):
            self.error(f"{extra[0]!r} is one word too many (put quotes around a prompt)")
        close = get_close_matches(option, self._option_string_actions, n=1)
        self.error(f"unknown option {option}" + (f" (did you mean {close[0]}?)" if close else ""))


class _Formatter(argparse.HelpFormatter):
    """Help at a width that shows each option with its sentence on few lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


@dataclass(frozen=True)
class Command:
    """One entry of the table: what it is for, which arguments it has, and what it does (the exit status)."""

    summary: str
    declare: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
