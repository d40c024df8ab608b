"""A coding task, from the question to the finished file, by an agent in each of the three APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.agent import BUG, FILES, MENDED, TASK, TOOLS, Agent, conversation
from tests.server.conftest import Running, loaded, scripted
from tests.server.test_responses import BOTH
from tests.server.test_tools import TEMPLATE
from understudy import LLM
from understudy.server.app import create_app
from understudy.server.settings import Settings

APIS = ("chat", "responses", "messages")
# Why a turn with calls ended, and one without.
CALLED = {"chat": "tool_calls", "responses": "completed", "messages": "tool_use"}


def written(name: str, **arguments: Any) -> str:
    """A call as Hermes wrote it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPT = (
    "I look.</think>First I read it." + written("read_file", path="add.py") + "\n" + written("run_test"),
    "It subtracts.</think>" + written("edit_file", path="add.py", old="a * b", new=MENDED),
    "No such text.</think>" + written("edit_file", path="add.py", old=BUG, new=MENDED) + "\n" + written("run_test"),
    "It passes.</think>All is well." + written("finish", summary="mended"),
)


def cut(text: str, size: int) -> list[str]:
    """`text` in pieces of so many characters, each of which a token stands for."""
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize(("api", "size"), [*zip(APIS, (6, 25, 11), strict=True)])
def test_a_model_that_calls_tools_mends_the_file(
    api: str, size: int, agents: Running, roomy: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(roomy.tokenizer, "chat_template", BOTH.replace("{{ m.content }}", CALLS + "{{ m.content }}"))
    asked = scripted(roomy, monkeypatch, *(cut(reply, size) for reply in SCRIPT))
    agent = Agent(tmp_path)
    turns = agent.work(conversation(api, agents.url, 900), ["auto"] * 6)
    assert agent.done and len(turns) == len(SCRIPT)
    assert (tmp_path / "add.py").read_text() == FILES["add.py"].replace(BUG, MENDED)
    assert [call.name for turn in turns for call in turn.calls] == [
        "read_file", "run_test", "edit_file", "edit_file", "run_test", "finish",
    ]  # fmt: skip
    assert [turn.reason for turn in turns] == [CALLED[api]] * 4
    assert [turn.thought for turn in turns] == ["I look.", "It subtracts.", "No such text.", "It passes."]
    assert [turn.text for turn in turns] == ["First I read it.", "", "", "All is well."]
    # Each turn was told all that came of the ones before.
    told = ["AssertionError: -1", "Error: old stands 0 times in add.py.", "passed"]
    for place, text in enumerate(told, 1):
        assert text in asked[place]["prompt"] and TASK in asked[place]["prompt"], asked[place]["prompt"]
        assert asked[place]["prompt"].count("<tool>") == len([call for turn in turns[:place] for call in turn.calls])
    assert "edit_file" in asked[0]["prompt"]
    assert all(turn.cached > 100 for turn in turns[1:]), "what was read of a conversation is not read again"


# How the template tells of calls that were made.
CALLS = TEMPLATE[TEMPLATE.index("{% for call in") : TEMPLATE.index("{% if m.role")]


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the model that comes along."""
    with loaded(None, tmp_path_factory, rows=2, context=2048) as llm:
        settings = Settings(model_name="tiny")
        running = Running(create_app(llm, settings), settings)
        yield running
        running.stop()


@pytest.mark.parametrize("api", APIS)
def test_the_built_in_model_keeps_to_the_protocol(api: str, builtin: Running, tmp_path: Path) -> None:
    """It writes nonsense, and calls tools where it must: each call is one of the tools, with arguments by its schema."""
    agent = Agent(tmp_path)
    turns = agent.work(conversation(api, builtin.url, 90), ["auto", "required", "run_test", "finish"])
    assert agent.done and len(turns) == 4, turns
    allowed = {each["name"]: set(each["parameters"]["properties"]) for each in TOOLS}
    for call in (call for turn in turns for call in turn.calls):
        assert set(call.arguments) == allowed[call.name]
    for name, turn in {"run_test": turns[-2], "finish": turns[-1]}.items():
        assert turn.calls and {call.name for call in turn.calls} == {name}
    assert len(agent.results) == sum(len(turn.calls) for turn in turns)
