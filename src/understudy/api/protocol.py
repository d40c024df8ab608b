"""What clients may send: the fields that are understood, those that would change the text and are refused, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from ..params import SamplingParams
from .errors import ApiError

# Fields that would change the text and are not supported, with the values that leave it as it is (null always does).
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "suffix": ("",),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
}

Number = Annotated[float, Field(strict=False)]


class StreamOptions(BaseModel):
    """Whether a stream ends with a chunk of figures."""

    model_config = ConfigDict(extra="allow")
    include_usage: StrictBool = False


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
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: StrictBool | None = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a field that would change the text and is not supported."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value is not None and value not in REFUSED[name]:
                raise ApiError(400, f"{name} is not supported: leave it out.", param=name, code="unsupported_parameter")

    def ignored(self) -> list[str]:
        """Fields that are not known and change nothing."""
        return sorted(name for name in (self.model_extra or {}) if name not in REFUSED)

    def longest(self) -> int | None:
        """The most tokens that were asked for; None: the request does not say."""
        return self.max_tokens

    def params(self, otherwise: int) -> SamplingParams:
        """As SamplingParams, with `otherwise` tokens at most where the request does not say. UsageError for values out of range."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        longest = self.longest()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(**given, max_new_tokens=otherwise if longest is None else longest, stop=stop)


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")
    role: StrictStr
    content: StrictStr | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it. ApiError (400) for content that is not text."""
        if isinstance(self.content, list):
            text = "".join(_text_of(part) for part in self.content)
        else:
            text = self.content or ""
        if (self.model_extra or {}).get("tool_calls"):
            raise ApiError(400, "messages with tool_calls are not supported.", param="messages")
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text}


class ChatBody(SamplingFields):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: StrictInt | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None

    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(SamplingFields):
    """The body of /v1/completions: one prompt or many, as texts or as token ids."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    echo: StrictBool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        prompt: Any = self.prompt
        one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
        return [prompt] if one else prompt


class TokenizeBody(BaseModel):
    """The body of /tokenize: a text, or a conversation."""

    model_config = ConfigDict(extra="allow")
    prompt: StrictStr | None = None
    messages: list[Message] | None = None
    add_special_tokens: StrictBool = True
    return_token_strs: StrictBool = False


class DetokenizeBody(BaseModel):
    """The body of /detokenize."""

    model_config = ConfigDict(extra="allow")
    tokens: list[StrictInt]


def _text_of(part: Mapping[str, Any]) -> str:
    """The text of one part of a message's content."""
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ApiError(400, f"This model takes text only, got a part of type {part.get('type')!r}.", param="messages")
    return str(part["text"])
