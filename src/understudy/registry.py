"""Names to things. A spec is `name`, `name:key=value,key=value` or `name:VALUE` where the factory has a single positional text.

The keys are the factory's own keyword-only arguments, so an extension's options live in its own file alone."""

import importlib
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from .errors import UsageError

T = TypeVar("T")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry called `name`; UsageError with the nearest and all valid names otherwise."""
    if name in table:
        return table[name]
    close = get_close_matches(name, table, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"No {kind} {name!r}.{hint} Known: {', '.join(sorted(table)) or 'none'}.")


def find(kind: str, table: Mapping[str, str], name: str) -> Any:
    """What `table[name]` ("module:attribute") points to, imported only now: an extension's dependencies are its own."""
    module, _, attribute = lookup(kind, name, table).partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(kind: str, table: Mapping[str, str], spec: str, *given: Any) -> Any:
    """Call the factory that `spec` names with `given` and the options in `spec`."""
    name, _, rest = spec.partition(":")
    factory = find(kind, table, name)
    parameters = inspect.signature(factory).parameters
    accepted = {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, text = item.partition("=")
        if not equals and "value" in accepted:
            key, text = "value", item
        elif not equals:
            raise UsageError(f"{kind} {name!r}: {item!r} should be key=value. Known keys: {', '.join(accepted) or 'none'}.")
        default = lookup(f"{kind} {name!r} option", key, accepted).default
        if key in options:
            raise UsageError(f"{kind} {name!r}: {key} is given twice.")
        options[key] = _convert(f"{kind} {name!r}", key, text, default)
    return factory(*given, **options)


def _convert(what: str, key: str, text: str, default: Any) -> Any:
    try:
        return type(default)(text)
    except ValueError:
        raise UsageError(f"{what}: {key} must be {type(default).__name__}, got {text!r}.") from None
