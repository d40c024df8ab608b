"""What was found out once about a kind of model is found again, in the cache or beside the machine code of a wheel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from tests.tiny import save
from understudy.errors import CheckpointError
from understudy.models.proving import proof
from understudy.models.stock import known, structure
from understudy.sources import layout_of
from understudy.weights.checkpoint import Checkpoint


def test_the_key_changes_with_values_libraries_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("llama")
    keys = [known.key_of(config, {"a": 1}), known.key_of(config, {"a": 2}), known.key_of(AutoConfig.for_model("qwen2"), {"a": 1})]
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "another")
        keys.append(known.key_of(config, {"a": 1}))
    with monkeypatch.context() as changed:
        changed.setattr(known, "transformers_version", lambda: "another")
        keys.append(known.key_of(config, {"a": 1}))
    with monkeypatch.context() as changed:
        changed.setattr(known, "SOURCES", known.SOURCES[1:])
        keys.append(known.key_of(config, {"a": 1}))
    assert len(set(keys)) == len(keys) and known.key_of(config, {"a": 1}) == keys[0]


def test_the_cache_comes_before_the_package_and_damage_is_as_good_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "READY", tmp_path / "ready")
    assert known.recall(tmp_path / "cache", "of/it.json") is None
    known.keep(tmp_path / "ready", "of/it.json", {"from": "package"})
    assert known.recall(tmp_path / "cache", "of/it.json") == {"from": "package"}
    known.keep(tmp_path / "cache", "of/it.json", {"from": "cache"})
    assert known.recall(tmp_path / "cache", "of/it.json") == {"from": "cache"}
    for damage in ("", "[1", "3", "[1]"):
        (tmp_path / "cache/of/it.json").write_text(damage)
        assert known.recall(tmp_path / "cache", "of/it.json") == {"from": "package"}
    assert [path.name for path in (tmp_path / "cache/of").iterdir()] == ["it.json"]


def test_a_proof_that_came_with_the_package_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("qwen2")
    proof.prove(config, tmp_path / "ready")
    monkeypatch.setattr(proof, "fault", lambda config: "it was asked again")
    with pytest.raises(CheckpointError, match="asked again"):
        proof.prove(config, tmp_path / "cache")
    monkeypatch.setattr(known, "READY", tmp_path / "ready")
    proof.prove(config, tmp_path / "cache")
    with pytest.raises(CheckpointError, match="asked again"):
        proof.prove(AutoConfig.for_model("qwen2", hidden_act="gelu"), tmp_path / "cache")


@pytest.mark.parametrize("damage", [None, "{}", '{"order": [], "other": 1}', '{"order": [], "looked_up": []}'])
def test_a_pass_is_traced_once_for_a_config(damage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    trace = structure.trace
    monkeypatch.setattr(structure, "trace", lambda *args: traced.append(args) or trace(*args))
    save(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    first = layout_of(checkpoint, tmp_path / "cache")
    if damage is not None:
        (kept,) = (tmp_path / "cache/traces").iterdir()
        kept.write_text(damage)
    assert layout_of(checkpoint, tmp_path / "cache") == first and len(first.linears) > 3
    assert len(traced) == (1 if damage is None else 2)
    save(tmp_path / "other", num_hidden_layers=1)
    assert len(layout_of(Checkpoint.open(tmp_path / "other"), tmp_path / "cache").linears) < len(first.linears)


def test_a_class_of_somebody_elses_is_always_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    trace = structure.trace
    monkeypatch.setattr(structure, "trace", lambda *args: traced.append(args) or trace(*args))
    monkeypatch.setattr(LlamaForCausalLM, "__module__", "somebody.elses")
    save(tmp_path / "model")
    for _ in range(2):
        layout_of(Checkpoint.open(tmp_path / "model"), tmp_path / "cache")
    assert len(traced) == 2 and not (tmp_path / "cache").exists()
