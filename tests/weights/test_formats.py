"""An adapter or another format in the place of a checkpoint is named, with what to give instead, before any work."""

import json
from pathlib import Path

import pytest

from tests.tiny import save
from understudy import LLM
from understudy.errors import CheckpointError, UsageError
from understudy.frontends.model import resolve
from understudy.weights.formats import gguf_advice, other_format, refuse_adapter

OTHERS = {
    "model.Q4_K_M.gguf": "is GGUF.*give the safetensors checkpoint",
    "pytorch_model-00001-of-00002.bin": "save it with save_pretrained",
    "consolidated.safetensors": "its maker's own format",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("config", [False, True])
def test_other_formats_are_named(name: str, config: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    if config:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=OTHERS[name]) as refusal:
        LLM.prepare(tmp_path)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_gguf_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"model\.gguf is GGUF, which Understudy does not read"):
        resolve(str(tmp_path / "model.gguf"))
    assert "'" not in gguf_advice("owner/model-GGUF")


def test_what_is_not_known_has_no_advice(tmp_path: Path) -> None:
    assert other_format(tmp_path) is None and other_format(tmp_path / "nothing") is None


@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "owner/base"}', "{", "[]"])
@pytest.mark.parametrize("beside_a_model", [False, True])
def test_an_adapter_is_refused_alone_and_beside_a_model(content: str, beside_a_model: bool, tmp_path: Path) -> None:
    """transformers would change the model by it."""
    if beside_a_model:
        save(tmp_path, "llama")
    (tmp_path / "adapter_config.json").write_text(content)
    base = "owner/base" if "owner" in content else "another model"
    with pytest.raises(CheckpointError, match=f"holds an adapter .* of {base}: merge both with peft") as refusal:
        LLM.prepare(tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(CheckpointError):
        refuse_adapter(tmp_path)
