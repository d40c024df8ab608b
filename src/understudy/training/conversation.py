"""Conversations in a line of JSON, as the tokens of the model's own chat template, of which the assistant's are to be guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from ..chat_template import chat_prompt, encode

ASSISTANT = "assistant"


class Unusable(Exception):
    """A line that holds nothing to learn from; the text says why."""


def conversation_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a record with `messages`, or with `prompt` and `completion`. Raises Unusable where it has neither, and where
    no message is the assistant's."""
    if "messages" in record:
        messages = _checked(record["messages"])
    elif {"prompt", "completion"} <= set(record):
        messages = _checked([*_messages(record["prompt"], "user"), *_messages(record["completion"], ASSISTANT)])
    else:
        raise Unusable("it has neither messages, nor a prompt and a completion, nor a text")
    if not any(message["role"] == ASSISTANT for message in messages):
        raise Unusable("no message is the assistant's")
    return messages


def question_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a record before the assistant's first. Raises Unusable where there are none."""
    if not {"messages", "prompt"} & set(record):
        raise Unusable("it has neither messages, nor a prompt, nor a text")
    messages = _checked(record["messages"] if "messages" in record else _messages(record["prompt"], "user"))
    asked = list(takewhile(lambda message: message["role"] != ASSISTANT, messages))
    if not asked:
        raise Unusable("nothing is asked before the assistant's first message")
    return asked


def _checked(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise Unusable("its messages are no list of objects with a role and a content, both texts")
    return messages


def _messages(given: Any, role: str) -> list[Any]:
    """A text as one message of `role`; a list as it is."""
    return [{"role": role, "content": given}] if isinstance(given, str) else given if isinstance(given, list) else [given]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)


def learned(tokenizer: Any, messages: list[dict[str, Any]]) -> Iterator[tuple[list[int], list[bool]]]:
    """The tokens of a conversation, and which of them are the assistant's. Some templates write earlier turns in another way than
    the last one: then there is a text for each of the assistant's turns.

    Raises UsageError where the template refuses the conversation."""
    turns = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
    parts = [_turn(tokenizer, messages[: place + 1]) for place in turns]
    whole, _ = parts[-1]
    if all(whole[: len(tokens)] == tokens for tokens, _ in parts):
        counted = [False] * len(whole)
        for tokens, start in parts:
            counted[start : len(tokens)] = [True] * (len(tokens) - start)
        yield whole, counted
        return
    for tokens, start in parts:
        yield tokens, [place >= start for place in range(len(tokens))]


def _turn(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
    """The tokens of a conversation that ends with the assistant's turn, and where in it that turn begins."""
    asked = chat_prompt(tokenizer, messages[:-1]) if len(messages) > 1 else []
    if not getattr(tokenizer, "chat_template", None):
        return [*asked, *encode(tokenizer, f" {messages[-1]['content']}\n", add_special_tokens=False)], len(asked)
    tokens = chat_prompt(tokenizer, messages, add_generation_prompt=False)
    same = next((place for place, pair in enumerate(zip(asked, tokens, strict=False)) if pair[0] != pair[1]), len(asked))
    return tokens, min(same, len(tokens))
