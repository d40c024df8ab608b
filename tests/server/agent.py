"""A coding agent of a few lines: it sends a task, does what the model calls for in a folder, and tells what came of it.

It speaks each of the three APIs through the package that its clients use, streamed, and keeps the conversation as they do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anthropic
import openai

SYSTEM = "You mend Python files."
TASK = "add.py is wrong. Mend it, so that its test passes."
BUG, MENDED = "a - b", "a + b"
FILES = {
    "add.py": f"def add(a, b):\n    return {BUG}\n",
    "check.py": "from add import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('passed')\n",
}
NAME = {"enum": [*FILES]}
LINE = {"type": "string", "maxLength": 12}


def tool(name: str, what: str, **properties: Any) -> dict[str, Any]:
    """A tool by name, with a schema of its arguments; all of them are required."""
    own = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"name": name, "description": what, "parameters": own}


TOOLS = (
    tool("read_file", "Reads a file.", path=NAME),
    tool("edit_file", "Replaces a text that stands once in a file.", path=NAME, old=LINE, new=LINE),
    tool("run_test", "Runs check.py."),
    tool("finish", "Ends the task.", summary={"type": "string", "maxLength": 20}),
)


@dataclass(frozen=True)
class Call:
    """What the model called for."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass
class Turn:
    """One answer of the model."""

    thought: str
    text: str
    calls: list[Call]
    reason: str
    # Tokens of the prompt that did not have to be read again.
    cached: int


class Conversation(Protocol):
    """A conversation in one of the APIs. `choice`: auto, required, or the name of a tool that must be called."""

    def ask(self, choice: str) -> Turn: ...

    def say(self, text: str) -> None: ...

    def answer(self, call: Call, result: str) -> None: ...


@dataclass
class ChatCompletions:
    """/v1/chat/completions, as most clients use it."""

    client: openai.OpenAI
    most: int
    messages: list[Any] = field(default_factory=lambda: [{"role": "system", "content": SYSTEM}])

    def ask(self, choice: str) -> Turn:
        named = {"type": "function", "function": {"name": choice}}
        asked: dict[str, Any] = {
            "model": "tiny", "messages": self.messages, "max_tokens": self.most,
            "tools": [{"type": "function", "function": each} for each in TOOLS],
            "tool_choice": choice if choice in ("auto", "required") else named,
        }  # fmt: skip
        text, thought, reason, cached = "", "", "", 0
        calls: list[dict[str, Any]] = []
        for chunk in self.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
                cached = chunk.usage.prompt_tokens_details.cached_tokens or 0
            for chosen in chunk.choices:
                text += chosen.delta.content or ""
                thought += getattr(chosen.delta, "reasoning", None) or ""
                reason = chosen.finish_reason or reason
                for call in chosen.delta.tool_calls or ():
                    assert call.index == len(calls), "a call comes whole"
                    calls.append({name: value for name, value in call.to_dict().items() if name != "index"})
        told = {"tool_calls": calls} if calls else {}
        self.messages.append({"role": "assistant", "content": text or None, "reasoning": thought, **told})
        made = [Call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
        return Turn(thought, text, made, reason, cached)

    def say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, call: Call, result: str) -> None:
        self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


@dataclass
class Responses:
    """/v1/responses, as Codex uses it: nothing is stored, and items are sent back without their ids."""

    client: openai.OpenAI
    most: int
    items: list[Any] = field(default_factory=list)

    def ask(self, choice: str) -> Turn:
        asked: dict[str, Any] = {
            "model": "tiny", "instructions": SYSTEM, "input": self.items, "max_output_tokens": self.most, "store": False,
            "include": ["reasoning.encrypted_content"], "tools": [{"type": "function", "strict": True, **each} for each in TOOLS],
            "tool_choice": choice if choice in ("auto", "required") else {"type": "function", "name": choice},
        }  # fmt: skip
        items: list[dict[str, Any]] = []
        last: Any = None
        for event in self.client.responses.create(**asked, stream=True):
            if event.type == "response.output_item.done":
                items.append(event.item.to_dict())
            last = event
        final = last.response
        assert [item.to_dict() for item in final.output] == items and len(final.id) > 9
        sent = [{name: value for name, value in item.items() if name not in ("id", "status", "parsed_arguments")} for item in items]
        self.items += [{**item, "content": []} if item["type"] == "reasoning" else item for item in sent]
        made = [item for item in items if item["type"] == "function_call"]
        calls = [Call(item["call_id"], item["name"], json.loads(item["arguments"])) for item in made]
        thought = "".join(part["text"] for item in items if item["type"] == "reasoning" for part in item["content"])
        return Turn(thought, final.output_text, calls, final.status, final.usage.input_tokens_details.cached_tokens)

    def say(self, text: str) -> None:
        self.items.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})

    def answer(self, call: Call, result: str) -> None:
        self.items.append({"type": "function_call_output", "call_id": call.id, "output": result})


@dataclass
class Messages:
    """/v1/messages, as Claude Code uses it: results of calls are blocks of the user's turn."""

    client: anthropic.Anthropic
    most: int
    messages: list[Any] = field(default_factory=list)

    def ask(self, choice: str) -> Turn:
        kinds = {"auto": {"type": "auto"}, "required": {"type": "any"}}
        tools = [{"name": each["name"], "description": each["description"], "input_schema": each["parameters"]} for each in TOOLS]
        asked: dict[str, Any] = {
            "model": "tiny", "system": SYSTEM, "messages": self.messages, "max_tokens": self.most, "tools": tools,
            "tool_choice": kinds.get(choice, {"type": "tool", "name": choice}),
        }  # fmt: skip
        counted = self.client.messages.count_tokens(**{name: value for name, value in asked.items() if name != "max_tokens"})
        with self.client.messages.stream(**asked) as stream:
            for _ in stream:
                pass
            final = stream.get_final_message()
        cached = final.usage.cache_read_input_tokens or 0
        assert counted.input_tokens == final.usage.input_tokens + cached
        blocks: list[dict[str, Any]] = [block.to_dict() for block in final.content]
        self.messages.append({"role": "assistant", "content": [dict(block) for block in blocks]})
        calls = [Call(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        texts = {kind: "".join(block[kind] for block in blocks if block["type"] == kind) for kind in ("thinking", "text")}
        return Turn(texts["thinking"], texts["text"], calls, str(final.stop_reason), cached)

    def say(self, text: str) -> None:
        self._user({"type": "text", "text": text})

    def answer(self, call: Call, result: str) -> None:
        self._user({"type": "tool_result", "tool_use_id": call.id, "content": result})

    def _user(self, block: dict[str, Any]) -> None:
        if not self.messages or self.messages[-1]["role"] != "user":
            self.messages.append({"role": "user", "content": []})
        self.messages[-1]["content"].append(block)


def conversation(api: str, url: str, most: int) -> Conversation:
    """A conversation in `api` with the server at `url`, with `most` tokens in an answer."""
    if api == "messages":
        return Messages(anthropic.Anthropic(base_url=url, api_key="none", max_retries=0), most)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return Responses(client, most) if api == "responses" else ChatCompletions(client, most)


@dataclass
class Agent:
    """Works in `folder`, which holds FILES at first."""

    folder: Path
    done: bool = False
    # What came of each call, in order.
    results: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, text in FILES.items():
            (self.folder / name).write_text(text)

    def work(self, talk: Conversation, choices: list[str]) -> list[Turn]:
        """Ask for one turn after another, by `choices`, until the task is finished or they are used up."""
        talk.say(TASK)
        turns = []
        for choice in choices:
            turns.append(turn := talk.ask(choice))
            for call in turn.calls:
                self.results.append(self.do(call))
                talk.answer(call, self.results[-1])
            if self.done:
                break
            if not turn.calls:
                talk.say("Call a tool.")
        return turns

    def do(self, call: Call) -> str:
        """Do what was called for. What cannot be done is told to the model."""
        does: Mapping[str, Callable[..., str]] = {
            "read_file": self._read, "edit_file": self._edit, "run_test": self._test, "finish": self._finish,
        }  # fmt: skip
        return does[call.name](**call.arguments)

    def _read(self, path: str) -> str:
        return (self.folder / path).read_text()

    def _edit(self, path: str, old: str, new: str) -> str:
        text = self._read(path)
        if not old or text.count(old) != 1:
            return f"Error: old stands {text.count(old)} times in {path}."
        (self.folder / path).write_text(text.replace(old, new))
        return "Done."

    def _test(self) -> str:
        ran = subprocess.run([sys.executable, "-B", "check.py"], cwd=self.folder, capture_output=True, text=True, timeout=60)
        return (ran.stdout + ran.stderr)[-200:]

    def _finish(self, summary: str) -> str:
        self.done = True
        return summary
