"""The MODEL argument: a Hugging Face id, a checkpoint directory, a Store directory, or `demo` (also when left out)."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..demo import NAME as DEMO
from ..errors import UsageError
from ..weights.formats import other_format

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def resolve(model: str | None) -> str | None:
    """What LLM takes: None for the built-in demo model. UsageError for what can be no model at all."""
    if model is None or model == DEMO:
        return None
    path = Path(model).expanduser()
    if path.exists():
        if not path.is_dir():
            if advice := other_format(path):
                raise UsageError(f"{model} is no model: {advice}.")
            raise UsageError(f"{model} is a file; MODEL is the directory that holds config.json, or a Hugging Face id.")
        return str(path)
    if model[:1] in ("/", ".", "~") or (model.count("/") > 1 and "@" not in model):
        raise UsageError(f"There is no directory {model}.{_nearest(path)}")
    if not _HUB_ID.fullmatch(model):
        raise UsageError(
            f"{_short(model)!r} is no model. For a prompt to the built-in model: understudy run {DEMO} 'PROMPT'."
        )
    if get_close_matches(model, [DEMO]):
        raise UsageError(f"No model {model!r}. Did you mean {DEMO!r}?")
    return model


def served_name(model: str | None, given: str | None) -> str:
    """What requests call the model: what was `given`, or the last part of its directory, or its id."""
    return given or (DEMO if model is None else Path(model).name or model)


def served_models(models: Sequence[str], named: Sequence[str], name: str | None) -> dict[str, str | None]:
    """What LLM takes for each model of a server, by the name that requests call it. `named`: "NAME=MODEL", as --model has them;
    `name`: what --served-model-name says. UsageError where two have one name."""
    pairs: list[tuple[str, str | None]] = []
    for model in models:
        found = resolve(model)
        pairs.append((served_name(found, name), found))
    for given in named:
        own, mark, model = given.partition("=")
        if not (own and mark and model):
            raise UsageError(f"--model takes NAME=MODEL, such as small=Qwen/Qwen3-4B, not {given!r}.")
        pairs.append((own, resolve(model)))
    if name is not None and (named or len(pairs) > 1):
        raise UsageError("--served-model-name is for one MODEL: --model NAME=MODEL gives each of several its name.")
    if not pairs:
        pairs = [(served_name(None, name), None)]
    found_names = [own for own, _ in pairs]
    if twice := next((own for own in found_names if found_names.count(own) > 1), None):
        raise UsageError(f"Two models would be called {twice!r}: name one of them otherwise, with --model NAME=MODEL.")
    return dict(pairs)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _nearest(path: Path) -> str:
    """The directory beside it that was probably meant."""
    if not path.parent.is_dir():
        return f" Nor is there {path.parent}." if path.parent.name else ""
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    close = get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
