"""`SamplingParams`: how a user wants tokens to be chosen. Values are checked here, so that nothing deeper has to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .constraint import Constraint
from .errors import UsageError
from .reasoning import ReasoningBudget


class NotGiven:
    """Mark of a value that the user left open, so that the model's own default may take its place."""


class OpenFloat(NotGiven, float):
    """A float that the user left open."""


class OpenInt(NotGiven, int):
    """A whole number that the user left open."""


# A lower temperature than this counts as this: logits that are divided by less are no float32 numbers.
LEAST_TEMPERATURE = 1e-20
# The largest bias of a token in either direction, as in the OpenAI API.
MOST_BIAS = 100.0
# The largest presence and frequency penalty in either direction, as there.
MOST_PENALTY = 2.0


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a text ends. Names follow transformers and vLLM.

    A value that is not given is taken from the model's generation_config.json. If that has none, the default below holds.

    Biases and penalties change the logits before the temperature and all filters, in this order: logit_bias,
    repetition_penalty, frequency_penalty, presence_penalty, min_tokens (`adjust.py`).

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
        repetition_penalty: the logit of a token of the text so far, prompt included, is divided by it where it is positive, and
            multiplied where it is negative, as in transformers (Keskar et al., arXiv 1909.05858); from 0.01 to 100; 1 is off.
        presence_penalty: is taken from the logit of a token that was generated before, as in the OpenAI API and vLLM; the
            prompt does not count; from -2 to 2; 0 is off.
        frequency_penalty: the same, times how often it was generated.
        logit_bias: what is added to the logits of tokens, by token id, from -100 to 100 each.
        min_tokens: no token and no text ends the generation before so many were generated: tokens that would are never chosen.
        logprobs: report the log-probability of each token, and of so many of the likeliest ones at its place: of the logits
            as the model gives them, in float32, whatever the temperature, filters and penalties. None: do not.
        prompt_logprobs: the same for each token of the prompt but the first. The prompt is read anew, more slowly.
        constraint: what the text must be, such as JSON by a schema: other tokens are never chosen. It ends where nothing may
            follow, before min_tokens too; max_new_tokens and stop may cut it short.
        reasoning_budget: how many tokens may be reasoning. Then the mark at its end is chosen, and the text goes on; a constraint
            of a conversation begins there.

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
    # 1: off
    repetition_penalty: float = OpenFloat(1.0)
    # 0: off
    presence_penalty: float = 0.0
    # 0: off
    frequency_penalty: float = 0.0
    # Pairs of a token id and what is added to its logit; may be given as a mapping.
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    min_tokens: int = OpenInt(0)
    # How many of the likeliest tokens are reported beside each one; None: no log-probabilities at all.
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    # None: any text.
    constraint: Constraint | None = None
    # None: reasoning may go on to the end.
    reasoning_budget: ReasoningBudget | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if not isinstance(self.stop, Iterable):
            raise UsageError(f"stop must be texts, got {self.stop!r}.")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        self._check_kinds()
        self._check_ranges()
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", LEAST_TEMPERATURE)

    def _check_kinds(self) -> None:
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        kinds: tuple[tuple[str, Any, str], ...] = (
            *((name, Real, "a number") for name in ("temperature", "top_p", "min_p", *penalties)),
            *((name, Integral, "a whole number") for name in ("top_k", "seed", "max_new_tokens", "min_tokens")),
            *((name, (Integral, type(None)), "a whole number") for name in ("logprobs", "prompt_logprobs")),
            ("ignore_eos", int, "true or false"),
            ("constraint", (Constraint, type(None)), "a Constraint"),
            ("reasoning_budget", (ReasoningBudget, type(None)), "a ReasoningBudget"),
        )
        for name, kind, text in kinds:
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name} must be {text}, got {getattr(self, name)!r}.")
        if not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop must be texts, got {self.stop!r}.")

    def _check_ranges(self) -> None:
        # A request for the log-probabilities of its prompt alone generates nothing.
        fewest = 1 if self.prompt_logprobs is None else 0
        biases = [bias for _, bias in self.biases]
        for name, good, text in (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= fewest, f"{fewest} or more"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100.0, "from 0.01 to 100"),
            ("presence_penalty", abs(self.presence_penalty) <= MOST_PENALTY, "from -2 to 2"),
            ("frequency_penalty", abs(self.frequency_penalty) <= MOST_PENALTY, "from -2 to 2"),
            ("logit_bias", all(abs(bias) <= MOST_BIAS for bias in biases), "numbers from -100 to 100"),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more"),
            ("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            ("stop", all(self.stop), "non-empty texts"),
        ):
            if not good:
                raise UsageError(f"{name} must be {text}, got {getattr(self, name)!r}.")

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """The pairs of `logit_bias`."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias

    @property
    def penalises(self) -> bool:
        """Whether the choice of a token depends on which ones are in the text."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def filters(self) -> bool:
        """Whether unlikely tokens are dropped before one is drawn."""
        return self.temperature > 0 and bool(self.top_k or self.top_p < 1 or self.min_p > 0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the temperature."""
        return self.penalises or bool(self.logit_bias) or self.min_tokens > 0

    def gives(self, name: str) -> bool:
        """Whether the user gave this value, a 0 included."""
        value: Any = getattr(self, name)
        return value != () if name == "stop" else not isinstance(value, NotGiven)


def _pairs(value: Any) -> tuple[tuple[int, float], ...]:
    """Token ids and their biases, by the ids. UsageError where they are none, or an id stands twice."""
    wrong = f"logit_bias must be numbers by token ids, got {repr(value)[:80]}."
    listed = list(value.items() if isinstance(value, Mapping) else value) if isinstance(value, Iterable) else [value]
    for pair in listed:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UsageError(wrong)
        token, bias = pair
        if isinstance(token, bool) or not isinstance(token, Integral) or not isinstance(bias, Real):
            raise UsageError(wrong)
    pairs = sorted((int(token), float(bias)) for token, bias in listed)
    if len({token for token, _ in pairs}) < len(pairs):
        raise UsageError(f"logit_bias must be one number for a token id, got {repr(value)[:80]}.")
    return tuple(pairs)
