"""Which models make way: memory is shared, and a model gives up nothing for others."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy import shelf
from understudy.errors import CheckpointError, UnderstudyError, UsageError
from understudy.shelf import ModelShelf

MEMORY = 100


def planned(model: str, memory: int = MEMORY, **_: Any) -> Any:
    """The plan of a model that takes what its name says, and streams what does not fit; 10 of it is the process itself."""
    size = int(model)
    if memory < 20:
        raise UsageError("too little")
    items = {"runtime": 10, "weights": min(size, memory) - 10}
    return SimpleNamespace(
        context=64, rows=2, passes=SimpleNamespace(trees=1), streamed_bytes=max(size - memory, 0), budget_bytes=memory,
        items=items, used=sum(items.values()),
    )  # fmt: skip


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModelShelf:
    monkeypatch.setattr(shelf.LLM, "plan_only", staticmethod(planned))
    monkeypatch.setattr(shelf, "locate", lambda model, options: SimpleNamespace(path=Path(model)))
    found = ModelShelf({"small": "30", "half": "50", "large": "95", "huge": "200"}, {}, lambda *_: None)
    found.check()
    assert found.contexts == dict.fromkeys(found.sources, 64)
    return found


def loaded(models: ModelShelf, *names: str) -> dict[str, Any]:
    return {name: SimpleNamespace(plan=models.plans[name]) for name in names}


def test_those_used_longest_ago_make_way_as_far_as_needed(models: ModelShelf) -> None:
    assert models.leaving("small", {}) == []
    assert models.leaving("half", loaded(models, "small")) == []
    assert models.leaving("large", loaded(models, "small", "half")) == ["small", "half"]
    assert models.leaving("half", loaded(models, "large", "small")) == ["large"]
    # one that streams even alone has all memory, and so has any other after it
    assert models.leaving("huge", loaded(models, "small")) == ["small"]
    assert models.leaving("small", loaded(models, "huge")) == ["huge"]


def test_what_others_hold_is_taken_off(models: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    told: list[str] = []

    def load(model: str, progress: Any, **options: Any) -> Any:
        made.append({"model": model, **options})
        return SimpleNamespace(store=SimpleNamespace(path=Path(model)))

    monkeypatch.setattr(shelf, "LLM", load)
    models.report = lambda stage, done, total: told.append(stage)
    models.load("small", {}, threading.Event())
    models.load("small", loaded(models, "half"), threading.Event())
    assert made == [{"model": "30"}, {"model": "30", "memory": MEMORY - 40}]
    assert told == ["Loading small", "Loading small beside half"]
    ended = threading.Event()
    ended.set()
    with pytest.raises(UnderstudyError, match="ended"):
        models.load("small", {}, ended)
    assert len(made) == 2
    # one that is alone is loaded without a word
    ModelShelf({"only": "30"}, {}, models.report).load("only", {}, threading.Event())
    assert len(made) == 3 and len(told) == 2


def test_a_model_that_cannot_be_is_named(tmp_path: Path) -> None:
    missing = ModelShelf({"good": None, "bad": str(tmp_path)}, {}, lambda *_: None)
    with pytest.raises(CheckpointError, match=f"^bad: {tmp_path} has no config.json"):
        missing.check()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        missing.leaving("bad", {})
