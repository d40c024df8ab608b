"""Every option that more than one command takes, each defined once. Names follow transformers and vLLM.

An option that was not given stays None, so the defaults live where the meaning lives: in LLM and SamplingParams."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..devices import device_names
from ..errors import UsageError
from ..params import SamplingParams
from ..plan.sizes import parse_size
from ..tiers import tier_names
from .parser import Parser


def one_of(option: str, known: Callable[[], Sequence[str]]) -> Any:
    """An argument type: one of the names that are known when it is given, with the nearest one in the error."""

    def convert(text: str) -> str:
        names = known()
        if text in names:
            return text
        close = get_close_matches(text, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"--{option} cannot be {text!r}.{hint} Known: {', '.join(names)}.")

    return convert


def whole(text: str) -> int:
    """An argument type: a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def bits(text: str) -> int | str:
    """An argument type: a whole number, "auto", or a mix, which is checked by LLM."""
    return text if text == "auto" or text.partition(":")[0] == "mixed" else whole(text)


def head_bits(text: str) -> int | str:
    """An argument type: a whole number, or "auto"."""
    return text if text == "auto" else whole(text)


def count(text: str) -> int:
    """An argument type: one or more."""
    if whole(text) < 1:
        raise ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def not_negative(text: str) -> int:
    """An argument type: zero or more."""
    if whole(text) < 0:
        raise ArgumentTypeError(f"must be 0 or more, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """An argument type: a number."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a number, got {text!r}") from None


def spill(text: str) -> str | int:
    """An argument type: auto, none, or a number of tokens."""
    return text if text in ("auto", "none") else count(text)


def kv_bits(text: str) -> str | int:
    """An argument type: auto, or a number of bits, which Options checks."""
    return text if text == "auto" else count(text)


def memory(text: str) -> str:
    """An argument type: a size, checked at once and read by LLM."""
    parse_size(text)
    return text


def speed(text: str) -> float:
    """An argument type: bytes a second."""
    return float(parse_size(text, "speed"))


def token_ids(text: str) -> list[int]:
    """An argument type: `1,2,3`."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--prompt-ids takes whole numbers such as 1,2,3, not {text!r}.") from None


def bias(text: str) -> tuple[int, float]:
    """An argument type: `50=-3.5`."""
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise ArgumentTypeError(f"takes a token id and a number such as 50=-3.5, not {text!r}") from None


@dataclass(frozen=True)
class Option:
    flag: str
    help: str
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


def _value(flag: str, metavar: str, help: str, convert: Any = str, **more: Any) -> Option:
    return Option(flag, help, {"metavar": metavar, "type": convert, **more})


def _choice(flag: str, known: Callable[[], Sequence[str]], help: str) -> Option:
    return _value(flag, "|".join(known()), help, one_of(flag.lstrip("-"), known))


def _switch(flag: str, help: str) -> Option:
    return Option(flag, help, {"action": "store_true"})


DTYPES = ("auto", "bfloat16", "float16", "float32")
SPLITS = ("auto", "blocks", "stages")
RESIDENT = ("auto", "none", "residual", "whole")

PREPARATION = (
    _value(
        "--bits", "2|3|4|6|8|mixed|auto",
        "bits of the copy that drafts (auto: 6 where passes wait long for weights and there is room, else 4);"
        " mixed:bits=3.5 where they help most", bits,
    ),
    _value("--head-bits", "4|8|auto", "bits of the head's copy (auto: 8 where there is room for them)", head_bits),
    _value(
        "--calibrate", "FILE", "a text that the copy is fitted to (default: one that comes along; none: weights alone)", Path
    ),
    _value(
        "--codec", "NAME",
        "how exact weights are stored: raw, delta (half the bytes; of float16 two thirds), fp8 and w4 (a quarter: weights"
        " published in FP8, or in four bits), auto (what is faster here)",
    ),
    _switch("--link", "keep no copy of the exact weights: read them from the original files, which must stay"),
    _switch("--offline", "use only what is on this machine already"),
    _value("--revision", "NAME", "branch, tag or commit of a Hugging Face model (also: owner/model@NAME)"),
)
PLACEMENT = (
    _value("--memory", "SIZE", "ceiling on fast memory, such as 8GiB (default: what is free)", memory),
    _value("--host-memory", "SIZE", "ceiling on host memory behind an accelerator, such as 32GiB", memory),
    _choice("--device", device_names, "where to compute"),
    _value("--devices", "A:0,A:1", "devices of one kind that share the exact weights: cuda:0,cuda:1 (--memory is each one's)"),
    _choice("--split", lambda: SPLITS, "--devices share blocks of outputs, or have stages of layers (auto: what should be faster)"),
    _choice("--tier", tier_names, "where streamed weights come from (auto: what the device is made for)"),
    _choice("--dtype", lambda: DTYPES, "precision of the exact model (auto: the checkpoint's; float32 for float16 on a processor)"),
    _choice("--resident", lambda: RESIDENT, "exact weights kept in fast memory (auto: what the budget leaves)"),
    _value("--context", "N", "longest prompt and answer together, in tokens", count),
    _value("--spill", "auto|none|N", "keys and values of all but the latest N tokens go to disk (auto: if they must)", spill),
    _value("--kv-bits", "8|auto", "8: keys and values take half the memory and are not exact (auto: the model's type)", kv_bits),
    _value("--prefix-cache", "DIR", "keep the beginnings of long prompts there, so that no later start reads them again", Path),
    _value("--prefix-cache-size", "SIZE", "the most that they may take (default 4GB); what was used least recently goes", memory),
    *PREPARATION,
)
METHOD = (
    _value("--method", "NAME", "who drafts: substitute (default), none, ngram or classic:MODEL; name:key=value,..."),
)
LINK = (_value("--throttle", "SIZE", "hold the link to so many bytes a second, such as 2GB: what a slower disk would give", speed),)
LENGTH = (_value("--max-new-tokens", "N", "longest answer, in tokens (default: the model's own, else 128)", count),)
SAMPLING = (
    *LENGTH,
    _value("--temperature", "T", "0 takes the likeliest token; more is more varied (default: the model's own, else 0)", number),
    _value("--top-p", "P", "sample from the likeliest tokens that make up this share", number),
    _value("--top-k", "K", "sample from the K likeliest tokens (0: all)", whole),
    _value("--min-p", "P", "leave out tokens below this share of the likeliest one", number),
    _value("--repetition-penalty", "P", "divide the scores of tokens in prompt and answer by this (1: off)", number),
    _value("--presence-penalty", "P", "take this from the score of a token that the answer has already, from -2 to 2", number),
    _value("--frequency-penalty", "P", "the same, for each time that the answer has it", number),
    _value(
        "--logit-bias", "ID=B", "add B, -100 to 100, to the score of token ID; may be given several times", bias, action="append"
    ),
    _value("--min-tokens", "N", "no end before so many tokens of the answer", whole),
    _value("--seed", "N", "one seed, one text (default: drawn anew, and told)", whole),
    _value("--stop", "TEXT", "end before this text; may be given several times", action="append"),
    _switch("--ignore-eos", "go on past the model's own end mark"),
)
FORM = (
    _value("--schema", "FILE", "the answer is JSON that is valid by the JSON schema in this file", Path),
    _value("--regex", "PATTERN", "the answer matches all of this regular expression"),
    _value("--grammar", "FILE", "the answer is of the grammar in this file (Lark of llguidance, or GBNF)", Path),
)
DEFAULTS = (
    _value(
        "--generation-config",
        "auto|none|DIR",
        "whose generation_config.json has the defaults above: the model's (auto), nobody's, that of a directory",
    ),
)
REQUESTS = (
    _value("--rows", "N", "requests that run together (default: what the memory suits)", count),
    _value("--served-model-name", "NAME", "what requests call the model (default: its directory or id)"),
)
PROMPT = (
    _value("--prompt-file", "FILE", "read the prompt from a UTF-8 file", Path),
    _value("--prompt-ids", "1,2,3", "the prompt as token ids", token_ids),
)
CONFIG_FILE = (
    _value("--config", "FILE", "options from a TOML file, each under its long name; the command line wins over it", Path),
)
JSON = _switch("--json", "print exactly one JSON object on stdout")
QUIET = _switch("--quiet", "nothing on stderr but errors")
OUTPUT = (JSON, QUIET)

TEXT = SAMPLING + FORM + DEFAULTS + PROMPT

_TITLES = {"model and memory": PLACEMENT + METHOD + LINK, "text": TEXT, "requests": REQUESTS, "output": CONFIG_FILE + OUTPUT}


def declare(parser: Parser, *groups: Sequence[Option]) -> None:
    """Add these options, in the order and under the titles they always have."""
    wanted = [option for group in groups for option in group]
    for title, known in _TITLES.items():
        group = parser.add_argument_group(title)
        for option in known:
            if option in wanted:
                group.add_argument(option.flag, help=option.help, **option.keywords)


def _given(args: Namespace, options: Sequence[Option]) -> dict[str, Any]:
    values = {option.name: getattr(args, option.name, None) for option in options}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def placement(args: Namespace) -> dict[str, Any]:
    """What the user said about the model and its memory, as keywords of LLM. A command follows one text at a time."""
    return {"rows": 1, **_given(args, PLACEMENT + METHOD + LINK + DEFAULTS)}


def placement_of_many(args: Namespace) -> dict[str, Any]:
    """As `placement`, for a command that runs as many texts together as the memory suits, or as the user said."""
    return _given(args, (*PLACEMENT, *METHOD, *DEFAULTS, *(option for option in REQUESTS if option.name == "rows")))


def placement_for_clients(args: Namespace) -> dict[str, Any]:
    """As `placement_of_many`, for texts that may be held to forms, where what does that is installed."""
    return {**placement_of_many(args), "grammars": find_spec("llguidance") is not None}


def preparation(args: Namespace) -> dict[str, Any]:
    """What the user said about the Store, as keywords of LLM and of prepare."""
    return _given(args, PREPARATION)


def sampling(args: Namespace) -> SamplingParams:
    """What the user said about the text."""
    return SamplingParams(**_given(args, SAMPLING))
