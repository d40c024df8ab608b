"""What clients may send: the fields that are understood, those that would change the text and are refused, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from ..params import SamplingParams
from .constraints import constraint_of
from .errors import ApiError
from .messages import USE_TOOLS, Message, Tool, text_of

# Fields that would change the text and are not supported, with the values that leave it as it is (null always does).
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "length_penalty": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "suffix": ("",),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
    # What samplers of llama.cpp and its relatives are called, with the values that switch them off.
    **dict.fromkeys(("mirostat", "top_a", "xtc_probability", "dry_multiplier", "dynatemp_range", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("repeat_penalty", "typical_p", "tfs_z"), (1,)),
}

# What to use in place of some of them.
HINTS = {
    "functions": USE_TOOLS,
    "function_call": USE_TOOLS,
    "thinking_token_budget": "reasoning is told apart in chats alone",
    "repeat_penalty": "use repetition_penalty instead",
}

Number = Annotated[float, Field(strict=False)]
Value = TypeVar("Value")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Likeliest tokens that may be asked for beside each token: as OpenAI's endpoints have it.
MOST_CHAT_LOGPROBS = 20
MOST_TEXT_LOGPROBS = 5


class StreamOptions(BaseModel):
    """Whether a stream ends with a chunk of figures."""

    model_config = ConfigDict(extra="allow")
    include_usage: StrictBool = False


class Prediction(BaseModel):
    """A text that the answer is likely to repeat: it makes the answer faster where it does, and never another one."""

    model_config = ConfigDict(extra="allow")
    type: Literal["content"] = "content"
    content: StrictStr | list[dict[str, Any]]

    def text(self) -> str:
        """All of it. ApiError (400) for content that is not text."""
        return self.content if isinstance(self.content, str) else "".join(text_of(part) for part in self.content)


class ReasoningFields(BaseModel):
    """How much the model is to think, in words, and the most tokens that it may take."""

    model_config = ConfigDict(extra="allow")
    effort: Effort | None = None
    max_tokens: StrictInt | None = None


class SamplingFields(BaseModel):
    """What chat and text completions have in common. A value that is left out, or null, is the model's own default."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    seed: StrictInt | None = None
    n: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: list[StrictInt] | None = None
    max_tokens: StrictInt | None = None
    ignore_eos: StrictBool | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    # By token ids, which JSON writes as texts.
    logit_bias: dict[str, Number] | None = None
    min_tokens: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: StrictBool | None = None
    # How each token came about, and figures with each chunk.
    return_drafting: StrictBool | None = None
    prediction: Prediction | None = None
    # What the text must be: one of these at most.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | StrictBool | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: list[StrictStr] | None = None
    guided_grammar: StrictStr | None = None
    grammar: StrictStr | None = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a field that would change the text and is not supported."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value is not None and value not in REFUSED[name]:
                advice = HINTS.get(name, "leave it out")
                raise ApiError(400, f"{name} is not supported: {advice}.", param=name, code="unsupported_parameter")

    def ignored(self) -> list[str]:
        """Fields that are not known and change nothing."""
        return sorted(name for name in (self.model_extra or {}) if name not in REFUSED)

    def longest(self) -> int | None:
        """The most tokens that were asked for; None: the request does not say."""
        return self.max_tokens

    def likeliest(self) -> int | None:
        """How many likely tokens are told beside each token; None: no log-probabilities are."""
        return None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are told."""
        return False

    def prompt_likeliest(self) -> int | None:
        """The same for the tokens of the prompt, where a request is to work them out."""
        return None

    def params(self, otherwise: int) -> SamplingParams:
        """As SamplingParams, with `otherwise` tokens at most where the request does not say.

        Raises UsageError for values out of range, and ApiError."""
        names = (
            *("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "min_tokens"),
            *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        )
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        longest = self.longest()
        if longest is not None and (self.min_tokens or 0) > longest:
            what = f"min_tokens must be at most max_tokens, got {self.min_tokens} and {longest}."
            raise ApiError(400, what, param="min_tokens")
        return SamplingParams(
            **given,
            max_new_tokens=otherwise if longest is None else longest,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logit_bias=_biases(self.logit_bias or {}),
            logprobs=self.likeliest(),
            prompt_logprobs=self.prompt_likeliest(),
            constraint=constraint_of(self),
        )


class ChatBody(SamplingFields):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: StrictInt | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    tools: list[Tool] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    # How much the model is to think: what a chat template makes of it.
    reasoning_effort: Effort | None = None
    # Tokens of reasoning after which its end is forced: as vLLM has it, and as OpenRouter does.
    thinking_token_budget: StrictInt | None = None
    reasoning: ReasoningFields | None = None

    @property
    def effort(self) -> str | None:
        """How much the model is to think. ApiError (400) where two fields say so and differ."""
        own = None if self.reasoning is None else self.reasoning.effort
        return _one_of("reasoning_effort", self.reasoning_effort, "reasoning.effort", own)

    @property
    def reasoning_tokens(self) -> int | None:
        """The most tokens of reasoning; None: any number. ApiError (400) where two fields say so and differ."""
        own = None if self.reasoning is None else self.reasoning.max_tokens
        return _one_of("thinking_token_budget", self.thinking_token_budget, "reasoning.max_tokens", own)

    def likeliest(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        return _at_most("top_logprobs", self.top_logprobs or 0, MOST_CHAT_LOGPROBS) if self.logprobs else None

    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(SamplingFields):
    """The body of /v1/completions: one prompt or many, as texts or as token ids."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    echo: StrictBool | None = None
    logprobs: StrictInt | Literal[False] | None = None

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.likeliest() is not None

    def likeliest(self) -> int | None:
        if self.logprobs is None or self.logprobs is False:
            return None
        return _at_most("logprobs", self.logprobs, MOST_TEXT_LOGPROBS)

    def prompt_likeliest(self) -> int | None:
        # A prompt that is told back and not continued is read, and no more.
        return (self.likeliest() or 0) if self.scores_prompt or (self.echo and self.max_tokens == 0) else None

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        prompt: Any = self.prompt
        one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
        return [prompt] if one else prompt


class TokenizeBody(BaseModel):
    """The body of /tokenize: a text, or a conversation."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    add_special_tokens: StrictBool = True
    return_token_strs: StrictBool = False


class DetokenizeBody(BaseModel):
    """The body of /detokenize."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr | None = None
    tokens: list[StrictInt]


def _one_of(first: str, one: Value | None, second: str, other: Value | None) -> Value | None:
    """The value that one of two fields has. Raises ApiError (400) where both have one and differ."""
    if one is not None and other is not None and one != other:
        raise ApiError(400, f"{first} is {one!r} and {second} is {other!r}: leave one of them out.", param=first)
    return other if one is None else one


def _at_most(name: str, value: int, most: int) -> int:
    """`value`, if it is from 0 to `most`. Raises ApiError (400)."""
    if not 0 <= value <= most:
        raise ApiError(400, f"{name} must be from 0 to {most}, got {value}.", param=name)
    return value


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    """The biases by token id. Raises ApiError (400) for what is no id."""
    for name in given:
        if not name.isascii() or not name.isdecimal():
            raise ApiError(400, f"logit_bias must be numbers by token ids, got {name[:40]!r}.", param="logit_bias")
    return {int(name[:20]): bias for name, bias in given.items()}
