"""--config: options from a TOML file, under the names of the long options, for command lines that grow long."""

import argparse
import tomllib
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UsageError

# What TOML calls the kinds of its values.
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a table"}


def words_of(argv: Sequence[str]) -> set[str]:
    """The options of a command line, without their values."""
    return {word.partition("=")[0] for word in argv if word.startswith("-")}


def names_options(file: Path, of_model: bool) -> bool:
    """Is `file`, which --config names, a file of options? `of_model`: it may be the directory of a model's config.json too."""
    return not of_model or file.suffix == ".toml"


def config_words(file: Path, actions: Sequence[argparse.Action], given: Collection[str]) -> list[str]:
    """What the `file` says, as words of a command line whose options are `actions`.

    Those whose destination is in `given` are left out: the command line has them. Raises UsageError for a file that cannot be read,
    a key that is no option, and a value of the wrong kind."""
    known = {name.lstrip("-"): action for action in actions for name in action.option_strings if name.startswith("--")}
    for never in ("help", "config"):
        known.pop(never, None)
    words = []
    for key, value in _content(file).items():
        if key not in known:
            close = get_close_matches(key, known, n=1) or get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"{file}: {key} is no option of this command.{hint}")
        own = _words(file, key, value, known[key])
        words += [] if known[key].dest in given else own
    return words


def _content(file: Path) -> dict[str, Any]:
    """The keys and values of a TOML file."""
    try:
        with file.expanduser().open("rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file} is not valid TOML: {error}.") from None


def _words(file: Path, key: str, value: Any, action: argparse.Action) -> list[str]:
    """The words for one option."""
    several = isinstance(action, argparse._AppendAction)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise _wrong(file, key, "true or false", value)
        return [f"--{key}"] if value else []
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise _wrong(file, key, "a text or a number" + (", or a list of those" if several else ""), one)
    # Joined, so that a value may begin with a dash.
    return [f"--{key}={one}" for one in values]


def _wrong(file: Path, key: str, wanted: str, value: Any) -> UsageError:
    return UsageError(f"{file}: {key} must be {wanted}, not {KINDS.get(type(value), type(value).__name__)}.")
