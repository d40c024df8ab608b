"""How families of models write reasoning and calls of tools, as fields of transformers' response templates.

A family is known by texts that its chat template has, so fine-tuned models are found too. Of a call, the arguments are what the
model says: a field gives JSON, XML or a text, and `calls.py` reads the call out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Mapping[str, Any]]

# The name of a call and its arguments, where the name stands apart from them.
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
AS_TEXT = {"strip": False}


@dataclass(frozen=True)
class Reasoning:
    """How reasoning is marked off: it begins at `opened` and ends at `closed`."""

    opened: str
    closed: str
    # Words after the opening mark that are a part of it.
    title: str = ""

    def fields(self) -> Fields:
        """The field of a response template. Blanks before the closing mark are no part of it."""
        closed = f"\\s*{re.escape(self.closed)}"
        return {"reasoning_content": {"open": self.opened + self.title, "close_pattern": closed, "content_args": AS_TEXT}}


@dataclass(frozen=True)
class CallShape:
    """How a call is written whose arguments are JSON, for a grammar to hold it to. Blanks may stand between its parts."""

    # What the arguments are called beside `name`, in a JSON object; empty: the bare name stands before them.
    key: str = "arguments"
    # What stands between a bare name and the arguments.
    between: str = ""
    # Do calls stand in a JSON list, one or many?
    listed: bool = False
    # What stands after them, and whether it must.
    close: str = ""
    closes: bool = True


@dataclass(frozen=True)
class Family:
    """How calls are written: `fields` of a response template, whose names end with tool_calls. Those that begin with bare_ have no
    mark of their own: they count only where they name a tool of the request."""

    name: str
    # Texts, all of which the chat template has.
    marks: tuple[str, ...]
    fields: Fields = field(default_factory=dict)
    # What stands before calls of these shapes; empty: nothing does, they are the whole reply. No shapes: no grammar knows them.
    opened: str = ""
    shapes: tuple[CallShape, ...] = ()
    # A regular expression of how a whole reply begins that may be a call; needed where nothing stands before calls.
    begins: str = ""


# Each is looked for in the chat template, and then among the tokenizer's tokens.
REASONING = (
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<|channel>", "<channel|>", "thought\n"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
)

_JSON = {"content": "json", "content_args": {"allow_non_json": True}}
# JSON between marks, which Hermes began: Qwen 2.5 and 3, SmolLM3, Granite 4 and many more. It is also what a model is told to
# write whose chat template knows no tools.
HERMES = Family(
    "hermes",
    ("<tool_call>",),
    {"tool_calls": {"open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "repeats": True, **_JSON}},
    "<tool_call>",
    (CallShape(close="</tool_call>"),),
)

FAMILIES = (
    Family(
        "qwen3-coder",
        ("<tool_call>", "<function="),
        {
            "tool_calls": {
                "open_pattern": r"\s*(?:<tool_call>\s*)?<function=(?P<name>[^>\n]+)>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "xml-inline",
                "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
                "transform": NAMED,
            }
        },
    ),
    Family(
        "glm-4.5",
        ("<tool_call>", "<arg_key>"),
        {
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>\s*(?P<name>[^\s<]+)",
                "close": "</tool_call>",
                "repeats": True,
                "content": "xml-inline",
                "content_args": {
                    "tag_pattern": r"<arg_key>\s*(?P<key>.*?)\s*</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"
                },
                "transform": NAMED,
            }
        },
    ),
    HERMES,
    Family(
        "mistral",
        ("[TOOL_CALLS]",),
        {
            "tool_calls": {"open_pattern": r"\s*\[TOOL_CALLS\]\s*(?=[\[{])", "repeats": True, **_JSON},
            "named_tool_calls": {
                "open_pattern": r"\s*\[TOOL_CALLS\](?P<name>[\w.\-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\s*\{)",
                "close_pattern": r"(?=\[TOOL_CALLS\])",
                "repeats": True,
                "content": "json",
                "transform": NAMED,
            },
        },
        "[TOOL_CALLS]",
        (CallShape(listed=True), CallShape(key="", between="[ARGS]")),
    ),
    Family(
        "gemma-4",
        ("<|tool_call>",),
        {
            "tool_calls": {
                "open_pattern": r"\s*<\|tool_call>call:(?P<name>[\w.\-]+)",
                "close": "<tool_call|>",
                "repeats": True,
                "content": "json",
                "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
                "transform": NAMED,
            }
        },
    ),
    Family(
        "function-gemma",
        ("<start_function_call>",),
        {
            "tool_calls": {
                "open_pattern": r"\s*<start_function_call>call:(?P<name>[\w.\-]+)",
                "close": "<end_function_call>",
                "repeats": True,
                "content": "json",
                "content_args": {"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
                "transform": NAMED,
            }
        },
    ),
    # Phi 4 closes what it opens, Granite 3 does not.
    Family(
        "phi-4, granite-3",
        ("<|tool_call|>",),
        {"tool_calls": {"open_pattern": r"\s*<\|tool_call\|>", "close": "<|/tool_call|>", "repeats": True, **_JSON}},
        "<|tool_call|>",
        tuple(CallShape(listed=listed, close="<|/tool_call|>", closes=False) for listed in (True, False)),
    ),
    Family("olmo-3", ("<function_calls>",), {"tool_calls": {"open_pattern": r"\s*<function_calls>", "close": "</function_calls>"}}),
    # JSON that nothing marks, as the whole reply; the mark of Llama 3.1 stands before calls of its own tools.
    Family(
        "llama-3",
        ("ipython", '"parameters"'),
        {
            "tool_calls": {"open_pattern": r"\A\s*<\|python_tag\|>", **_JSON},
            "bare_tool_calls": {"open_pattern": r'\A\s*(?=\{\s*"(?:name|type|function|parameters)"|\[\s*\w+\()', **_JSON},
        },
        shapes=(CallShape(key="parameters"),),
        begins=r'\s*(\{\s*"(name|type|function|parameters)"|\[\s*\w+\()',
    ),
    # A line with the name, and one with the arguments.
    Family(
        "glm-4",
        ("<|observation|>",),
        {
            "bare_tool_calls": {
                "open_pattern": r"\A\s*(?P<name>[\w.\-]+)\n(?=\{)",
                "content": "json",
                "transform": NAMED,
            }
        },
    ),
)
