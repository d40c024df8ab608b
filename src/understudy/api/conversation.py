"""A conversation on its way to a prompt, and how its reply will be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..chat_template import chat_text, encode, has_template
from ..constraint import Constraint
from ..errors import UnderstudyError
from ..params import SamplingParams
from ..reasoning import ReasoningBudget
from ..replies.families import Reasoning
from ..replies.format import ReplyFormat, chat_template_text, format_of, reasoning_of
from ..replies.splitter import ReplySplitter
from ..replies.telling import told
from .enforced import NAME, Thought, required_calls
from .errors import ApiError
from .messages import ToolUse, conversation, tool_use
from .protocol import ChatBody
from .strict_calls import strict_reply
from .template_options import template_options
from .tool_schemas import check_tools

# Variables of chat templates that switch reasoning on and off.
SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a conversation, and how the reply to it is read."""

    ids: list[int]
    # None: the reply is text alone.
    form: ReplyFormat | None
    # What the reply begins with in the prompt.
    prefix: str
    use: ToolUse
    # The calls that the reply must make; None: none.
    must: Constraint | None = None
    # The reasoning that comes before any form of the reply.
    thought: Thought = field(default_factory=Thought)
    # What the reply must be by a form of its own, where its calls are held to schemas; None: they are not.
    strict: Callable[[Constraint | None], Constraint] | None = None
    # How much of the reply may be reasoning; None: any of it.
    budget: ReasoningBudget | None = None

    def held(self, params: SamplingParams) -> SamplingParams:
        """`params` with what the reply must be, and how long it may reason. ApiError (400) for a form that calls bar."""
        own = params.constraint
        if own is not None and self.must is not None:
            raise ApiError(400, f"{NAME} cannot stand beside {own.name}: a text has one form.", param=NAME)
        form = self.must or own
        if self.strict is not None:
            form = self.strict(own)
        elif form is not None:
            form = self.thought.then(form)
        return replace(params, constraint=form, reasoning_budget=self.budget)

    def splitter(self) -> ReplySplitter | None:
        """What splits one reply; None: it is text alone."""
        return None if self.form is None else ReplySplitter(self.form, self.prefix, self.use.most_calls)


def conversation_of(llm: Any, body: ChatBody) -> ChatPrompt:
    """The conversation that `body` asks to go on with. Raises ApiError, UsageError and CheckpointError."""
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    check_tools(llm.maker.grammars, use)
    tokenizer = llm.tokenizer
    messages, options = told(tokenizer, conversation(body.messages), use.tools)
    options |= _thinking(tokenizer, body.effort) | template_options(tokenizer, body.chat_template_kwargs)
    if body.continue_final_message and body.add_generation_prompt:
        what = "add_generation_prompt begins a message, and continue_final_message goes on with the last one: leave one out."
        raise ApiError(400, what, param="add_generation_prompt")
    if body.continue_final_message:
        options |= {"continue_final_message": True, "add_generation_prompt": False}
    elif body.add_generation_prompt is not None:
        options["add_generation_prompt"] = body.add_generation_prompt
    text, taken = _text(tokenizer, messages, options)
    ids = llm.prompt_ids(encode(tokenizer, text, add_special_tokens=not has_template(tokenizer)))
    form = format_of(tokenizer, use.tools, enforced=use.required)
    prefix = "" if form is None else _prefix(tokenizer, form, text, taken, options)
    reasoning = reasoning_of(tokenizer)
    begun = form is not None and ReplySplitter(form, prefix).begun
    thought = Thought.of(tokenizer, reasoning, begun)
    budget = _budget(reasoning, begun, body.reasoning_tokens)
    must = required_calls(use) if use.required else None
    strict = None
    # Calls that must be made are held to all schemas anyway.
    if form is not None and use.strict and must is None:
        strict = partial(strict_reply, tokenizer, form, use, thought)
    return ChatPrompt(ids, form, prefix, use, must, thought, strict, budget)


def _budget(reasoning: Reasoning | None, begun: bool, tokens: int | None) -> ReasoningBudget | None:
    """The budget of a reply by a model that marks its `reasoning`; None where there is none to be limited."""
    if tokens is None:
        return None
    marks = {} if reasoning is None else {"opened": reasoning.opened + reasoning.title, "closed": reasoning.closed}
    budget = ReasoningBudget(tokens, **marks, begun=begun, name="thinking_token_budget")
    return None if reasoning is None else budget


def _thinking(tokenizer: Any, effort: str | None) -> dict[str, Any]:
    """What the chat template is told of an effort: those of the variables that it reads."""
    if effort is None:
        return {}
    values = {"reasoning_effort": effort, **dict.fromkeys(SWITCHES, effort != "none")}
    text = chat_template_text(tokenizer)
    return {name: value for name, value in values.items() if re.search(rf"(?<![\w.'\"]){name}\b(?!['\"])", text)}


def _text(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The text of the conversation, and the messages as the template took them: some want arguments of calls as texts."""
    try:
        return chat_text(tokenizer, messages, **options), messages
    except UnderstudyError:
        written = [_written(message) for message in messages]
        if written == messages:
            raise
        try:
            return chat_text(tokenizer, written, **options), written
        except UnderstudyError:
            pass
        raise


def _written(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its calls as JSON texts."""
    found = dict(message)
    if "tool_calls" in message:
        calls = [(call, call["function"]) for call in message["tool_calls"]]
        found["tool_calls"] = [
            {**call, "function": {**own, "arguments": json.dumps(own["arguments"], ensure_ascii=False)}} for call, own in calls
        ]
    return found


def _prefix(
    tokenizer: Any, form: ReplyFormat, text: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> str:
    """What of the prompt `text` belongs to the reply: a template may open its reasoning."""
    if form.finds_start:
        return text
    if options.get("continue_final_message"):
        return str(messages[-1]["content"])
    if options.get("add_generation_prompt", True) is False or not has_template(tokenizer):
        return ""
    try:
        without = chat_text(tokenizer, messages, **{**options, "add_generation_prompt": False})
    except UnderstudyError:
        return ""
    pairs = zip(text, without, strict=False)
    shared = next((place for place, (own, other) in enumerate(pairs) if own != other), min(len(text), len(without)))
    return text[shared:]
