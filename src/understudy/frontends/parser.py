"""Command lines. A mistake is one line with the nearest valid name; nothing here imports more than argparse."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from ..errors import UsageError
from .config_file import config_words, names_options, words_of


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors, and which takes words and options in any order."""

    # Does --config also name the directory of a model's config.json? Then a file of options ends in .toml.
    config_is_of_model = False

    def __init__(self, name: str, description: str) -> None:
        super().__init__(f"understudy {name}", description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; UsageError for whatever this command does not know. What a file named by --config says comes before
        them, so that they win over it."""
        words = list(argv)
        file = self._file_of_options(words)
        if file is not None:
            # What is given several times on the command line takes the place of what the file has of it.
            given = {action.dest for action in self._actions if words_of(argv).intersection(action.option_strings)}
            words = [*config_words(file, self._actions, given), *words]
        args, extra = self.parse_known_intermixed_args(words)
        if not extra:
            return args
        option, _, _ = extra[0].partition("=")
        if not option.startswith("-"):
            self.error(f"{extra[0]!r} is one word too many (put quotes around a prompt)")
        close = get_close_matches(option, self._option_string_actions, n=1)
        self.error(f"unknown option {option}" + (f" (did you mean {close[0]}?)" if close else ""))

    def _file_of_options(self, words: list[str]) -> Path | None:
        """The file that --config names, where it is one of options."""
        if "--config" not in self._option_string_actions:
            return None
        # It is looked for first, since what it says may be what the command needs.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        first.add_argument("--config", type=Path, nargs="?")
        file: Path | None = first.parse_known_args(words)[0].config
        return file if file is not None and names_options(file, self.config_is_of_model) else None


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
