"""A conversation is planned for a config alone, and for a model that is prepared, whose copy stays as it is."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.published import MISTRAL_SMALL_24B
from tests.tiny import save, values_of
from understudy import LLM
from understudy.chat_plan import chat_for
from understudy.errors import UsageError
from understudy.options import Options
from understudy.plan.conversation import Conversation
from understudy.plan.other_machine import OtherMachine
from understudy.plan.rounds import Arithmetic

TALK = Conversation(turns=3, prompt=20, reply=30)
OTHER = OtherMachine.parse("cpu:memory=32GB,disk=3GB/s,bandwidth=60GB/s")
READING = Arithmetic.of_bandwidth(60e9)
# As published, but for most of its layers: each plan looks at all Linears.
FEWER_LAYERS = {**MISTRAL_SMALL_24B, "text_config": {**MISTRAL_SMALL_24B["text_config"], "num_hidden_layers": 10}}


def test_a_config_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_SMALL_24B))
    chat = chat_for(tmp_path, (TALK, "context", ""), Options.of({}, os.environ), READING, OTHER, config_alone=True)
    assert any(step.options == "--bits 2" for step in chat.steps)
    assert chat.chosen.plan.streamed_bytes > 0 and chat.lower_bound.budget_bytes < 8 << 30


def test_latent_states_have_no_fewer_bits_to_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps({**values_of("minicpm3"), "dtype": "bfloat16"}))
    asked = tmp_path, (TALK, "context", ""), Options.of({}, os.environ), READING, OTHER
    chat = chat_for(*asked, config_alone=True)
    assert chat.inexact is None and any("there are none here" in note for note in chat.notes)
    (tmp_path / "config.json").write_text(json.dumps(FEWER_LAYERS))
    assert chat_for(*asked, config_alone=True).inexact is not None


def test_a_config_alone_needs_to_be_told_how_fast_weights_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(FEWER_LAYERS))
    asked = TALK, "context", ""
    with pytest.raises(UsageError, match=r"nobody knows how fast they would come: .* --for .* or give .* --throttle"):
        chat_for(tmp_path, asked, Options.of({}, os.environ), READING, config_alone=True)
    chats = [
        chat_for(tmp_path, asked, Options.of({"memory": "6GB", "throttle": speed}, os.environ), READING, config_alone=True)
        for speed in (1e9, 2e9)
    ]
    slow, fast = (chat.chosen.expected.tokens_per_second for chat in chats)
    assert 1.5 * slow < fast


def test_a_prepared_model_keeps_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model", "llama", torch.bfloat16)
    store = LLM.prepare(tmp_path / "model", output=tmp_path / "store")
    chat = chat_for(store.path, (TALK, "context", ""), Options.of({}, os.environ), READING, OTHER)
    assert not any("--bits" in step.options for step in chat.steps) and chat.steps[-1].options == "--method none"
    assert any("prepared" in note for note in chat.notes)
