"""Conversations to prompts, by the model's own chat template or a plain one. A template is code, and may refuse or fail."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .errors import CheckpointError, UnderstudyError, UsageError, first_line, quoted

Messages = Sequence[Mapping[str, Any]]
OTHERWISE = "Mend its chat_template, or continue a plain text with `understudy run`."


def encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """The token ids of `text`. UsageError where the tokenizer cannot take it."""
    if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
        what = f"The text is not valid Unicode: {ascii(half[0])[1:-1]}, half of a character, stands alone in it"
        raise UsageError(f"{what}. Send the whole character, or leave it out.")
    with quoted(UsageError, "The tokenizer cannot take this text", "Write it in other characters."):
        return list(tokenizer(text, **options)["input_ids"])


def chat_prompt(tokenizer: Any, messages: Messages, **options: Any) -> list[int]:
    """The token ids of a conversation, as `chat_text` writes it. Raises UsageError and CheckpointError as that does."""
    return encode(tokenizer, chat_text(tokenizer, messages, **options), add_special_tokens=not has_template(tokenizer))


def chat_text(tokenizer: Any, messages: Messages, **options: Any) -> str:
    """The text of a conversation: by the tokenizer's own template, or a plain one where it has none.

    options: what a template is told besides the messages, such as add_generation_prompt=False or enable_thinking=False.

    Raises UsageError for messages that make no sense or that the template refuses, CheckpointError for a faulty template."""
    if not messages or not all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in messages):
        raise UsageError("A conversation is a list of messages, each with a role and a content.")
    messages = [{**message, "content": _content(message, place)} for place, message in enumerate(messages)]
    if has_template(tokenizer):
        return _rendered(tokenizer, messages, options)
    goes_on = options.get("continue_final_message") is True
    plain = {"continue_final_message", "add_generation_prompt"} if goes_on else set()
    if others := sorted(set(options) - plain):
        raise UsageError(f"This model has no chat template that could be told {', '.join(others)}.")
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join(lines if goes_on else [*lines, "Assistant:"])


def _content(message: Mapping[str, Any], place: int) -> str:
    """The text of a message, whose parts may come one by one, as in the OpenAI API. Raises UsageError for what is no text."""
    content, where = message["content"], f"messages[{place}]"
    if not isinstance(message["role"], str):
        raise UsageError(f"{where}: a role is a text, such as user, got {message['role']!r}.")
    if content is None and message.get("tool_calls"):
        return ""
    if not isinstance(content, (str, list)):
        raise UsageError(f"{where}: a content is a text, or a list of parts of type text, got {content!r}.")
    for part in content if isinstance(content, list) else ():
        if part_text(part) is None:
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise UsageError(f"{where}: this model takes text only, got a part of type {kind!r}.")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def part_text(part: Any) -> str | None:
    """The text of one part of a message's content; None where it is no part of type text."""
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template; a plain one is used where it has none."""
    return bool(getattr(tokenizer, "chat_template", None))


def plain_stops(tokenizer: Any) -> tuple[str, ...]:
    """Where a reply ends in the plain template."""
    return () if has_template(tokenizer) else ("\nUser:",)


def _rendered(tokenizer: Any, messages: Messages, options: Mapping[str, Any]) -> str:
    """What the tokenizer's template writes for the messages.

    Templates of multimodal models may want a content in parts, each with a type, and pass over one that is a plain text."""
    if not all(isinstance(message["content"], str) for message in messages):
        return _applied(tokenizer, messages, options)
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    try:
        text = _applied(tokenizer, messages, options)
    except UnderstudyError:
        with suppress(UnderstudyError):
            return _applied(tokenizer, parts, options)
        raise
    if not _holds(text, messages):
        with suppress(UnderstudyError):
            in_parts = _applied(tokenizer, parts, options)
            return in_parts if _holds(in_parts, messages) else text
    return text


def _holds(text: str, messages: Messages) -> bool:
    """Does `text` hold what the user said in each of the `messages`?"""
    return all(message["content"].strip() in text for message in messages if message["role"] == "user")


def _applied(tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The text of the tokenizer's template, applied once. UsageError where it refuses, CheckpointError where it is faulty."""
    import jinja2

    template = tokenizer.chat_template
    with_tools = bool(options.get("tools")) and isinstance(template, Mapping) and "tool_use" in template
    if isinstance(template, Mapping) and "default" not in template and not with_tools:
        names = ", ".join(sorted(template))
        raise CheckpointError(f"This model has several chat templates ({names}) and none is called default. {OTHERWISE}")
    if not isinstance(template, (str, Mapping)):
        raise CheckpointError(f"This model's chat template is no text. {OTHERWISE}")
    try:
        with quoted(CheckpointError, "This model's chat template is faulty", OTHERWISE, jinja2.UndefinedError):
            told = {"add_generation_prompt": True, **options}
            text = tokenizer.apply_chat_template([*messages], tokenize=False, **told)
    except CheckpointError as error:
        # The template may be sound, and leave out or change what the assistant said last.
        if options.get("continue_final_message") is True and "final message does not appear" in str(error):
            what = "This model's chat template does not write the last message as it is, so no reply can go on with it"
            raise UsageError(f"{what}: leave continue_final_message out, or change that message.") from None
        raise
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: {error.message}"
        raise CheckpointError(f"This model's chat template is faulty in {where}. {OTHERWISE}") from None
    except jinja2.TemplateError as error:
        # A template that does not take a role, or an order of roles, raises the bare kind.
        if type(error) is jinja2.TemplateError:
            raise UsageError(f"This model's chat template refuses the conversation: {first_line(error)}.") from None
        raise CheckpointError(f"This model's chat template is faulty: {first_line(error)}. {OTHERWISE}") from None
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"This model's chat template writes nothing. {OTHERWISE}")
    return text
