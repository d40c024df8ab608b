"""`SamplingParams`: how a user wants tokens to be chosen. Values are checked here, so that nothing deeper has to."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import UsageError


class NotGiven:
    """Mark of a value that the user left open, so that the model's own default may take its place."""


class OpenFloat(NotGiven, float):
    """A float that the user left open."""


class OpenInt(NotGiven, int):
    """A whole number that the user left open."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a text ends. Names follow transformers and vLLM.

    A value that is not given is taken from the model's generation_config.json. If that has none, the default below holds.

    Args:
        temperature: 0 is greedy; above 0, logits are divided by it and tokens are drawn.
        top_p: keeps the likeliest tokens whose probabilities reach this sum, above 0 and at most 1; 1 is off.
        top_k: keeps this many of the likeliest tokens; 0 is off.
        min_p: keeps tokens at least this many times as likely as the likeliest one, from 0 to 1; 0 is off.
        seed: a whole number from 0 to 2**63 - 1. One seed gives one text, with drafting or without. A sampled request
            without a seed draws one, and its Stats say which.
        max_new_tokens: the most tokens to generate, 1 or more.
        stop: one text or a list of texts. Generation ends before the first of them.
        ignore_eos: go on after the tokens by which the model ends a text.

    Raises:
        UsageError: a value has the wrong type or is out of range."""

    # 0: greedy
    temperature: float = OpenFloat(0.0)
    # 1: off
    top_p: float = OpenFloat(1.0)
    # 0: off
    top_k: int = OpenInt(0)
    # 0: off
    min_p: float = OpenFloat(0.0)
    # Keys the noise, together with the position of a token.
    seed: int = OpenInt(0)
    # Tokens, the one that ends the text included.
    max_new_tokens: int = OpenInt(128)
    # A text that ends the generation is not part of it.
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if not isinstance(self.stop, Iterable):
            raise UsageError(f"stop must be texts, got {self.stop!r}.")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, kind, text in (
            *((name, Real, "a number") for name in ("temperature", "top_p", "min_p")),
            *((name, Integral, "a whole number") for name in ("top_k", "seed", "max_new_tokens")),
            ("ignore_eos", int, "true or false"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name} must be {text}, got {getattr(self, name)!r}.")
        if not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop must be texts, got {self.stop!r}.")
        for name, good, text in (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            ("stop", all(self.stop), "non-empty texts"),
        ):
            if not good:
                raise UsageError(f"{name} must be {text}, got {getattr(self, name)!r}.")

    def gives(self, name: str) -> bool:
        """Whether the user gave this value, a 0 included."""
        value: Any = getattr(self, name)
        return value != () if name == "stop" else not isinstance(value, NotGiven)
