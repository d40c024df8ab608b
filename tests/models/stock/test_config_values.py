"""What is wrong with a model's small files is said in one line that names it, before any work, and whatever is asked for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save, stock
from understudy import LLM
from understudy.errors import CheckpointError, UnderstudyError
from understudy.models.stock import structure
from understudy.models.stock.configuration import config_of
from understudy.models.streamed import attention_name

RUN = [sys.executable, "-m", "understudy", "run"]
GARBAGE: list[Any] = [None, -1, 0, 3.0, "64", [4], {"a": 1}, True, 1e99, 7]


def directory_of(place: Path, family: str = "llama", **changes: Any) -> Path:
    """A directory with a config.json alone, edited as a person would."""
    config = json.loads(stock(family).config.to_json_string(use_diff=False))
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", **changes}))
    return place


def refused(call: Any, *words: str) -> str:
    with pytest.raises(UnderstudyError) as refusal:
        call()
    said = str(refusal.value)
    assert "\n" not in said and all(word in said for word in words), said
    return said


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "no_such_act"}, {"hidden_act": None}, {"hidden_act": 5},
        {"rms_norm_eps": "1e-5"}, {"num_hidden_layers": 3.0}, {"num_hidden_layers": 0}, {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"hidden_size": "64"}, {"hidden_size": -64}, {"hidden_size": 0}, {"intermediate_size": None}, {"intermediate_size": -4},
        {"vocab_size": None}, {"vocab_size": 0}, {"vocab_size": [256]},
        {"num_attention_heads": 5}, {"num_attention_heads": 0}, {"num_key_value_heads": 3}, {"num_key_value_heads": -2},
        {"head_dim": "16"}, {"head_dim": -16}, {"head_dim": 15},
        {"max_position_embeddings": None}, {"max_position_embeddings": 0}, {"max_position_embeddings": "512"},
        {"eos_token_id": "0"}, {"bos_token_id": 1.5}, {"pad_token_id": {"a": 1}}, {"pad_token_id": "</s>"},
        {"rope_parameters": {"rope_type": "nosuch", "factor": 2.0}}, {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_parameters": {"rope_type": "linear", "factor": "two", "rope_theta": 1e4}}, {"rope_parameters": {"rope_theta": None}},
        {"rope_parameters": {"rope_type": None}}, {"rope_parameters": "linear"},
        {"model_type": "no_such_kind"}, {"model_type": None}, {"model_type": 5}, {"model_type": ["llama"]},
        {"dtype": "no_such_type"}, {"dtype": "int8"}, {"dtype": 16}, {"attention_bias": "yes"}, {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    place = directory_of(tmp_path / "model", **changes)
    name, value = next(iter(changes.items()))
    said = refused(lambda: LLM.plan_only(None, config=place, memory="1GiB"))
    vague = {"rope_parameters": "rope", "hidden_act": "TypeError", "intermediate_size": "Error", "head_dim": "Error"}
    assert name in said or str(value) in said or vague[name] in said, said


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_experts", "layer_types", "sliding_window", "architectures"])
@pytest.mark.parametrize("value", GARBAGE, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_no_value_ends_in_another_error(name: str, value: Any, family: str, tmp_path: Path) -> None:
    """Used or refused: nothing but an error of one line comes out, of the config and of the model it describes."""
    place = directory_of(tmp_path / "model", family, **{name: value})
    try:
        config = config_of(place)
        model = structure.skeleton(config, config.dtype, attention_name())
        structure.trace(model, structure.streamed_linears(model))
    except CheckpointError as refusal:
        assert "\n" not in str(refusal)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "null", "[" * 100_000, b"\xff\xfe".decode("latin-1"), '{"model_type": "llama"'], ids=range(8)
)
def test_a_config_that_is_no_json_object_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    refused(lambda: LLM.plan_only(None, config=tmp_path), "config.json")
    refused(lambda: config_of(tmp_path), "config.json")


def test_every_command_says_it_before_any_work(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    directory_of(tmp_path / "model", hidden_act="no_such_act")
    store = tmp_path / "store"
    for call in (LLM, LLM.prepare, LLM.plan_only):
        refused(lambda call=call: call(tmp_path / "model", output=store), "hidden_act", "'no_such_act'")
    assert not store.exists() and not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize("changes", [{"intermediate_size": 192}, {"vocab_size": 300}, {"num_hidden_layers": 4}], ids=str)
def test_sizes_that_the_tensors_do_not_have_are_named(changes: dict[str, int], tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes))
    word = "layers.3" if "num_hidden_layers" in changes else "the config asks for"
    refused(lambda: LLM(tmp_path / "model", output=tmp_path / "store"), word)
    assert not (tmp_path / "store").exists()


def own_code(directory: Path) -> Path:
    """A checkpoint that brings code, which ends the process if it is run."""
    save(directory, "llama")
    config = json.loads((directory / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "own_kind", "auto_map": auto_map}))
    (directory / "modeling_own.py").write_text("raise SystemExit('this must not run')\n")
    return directory


def test_code_of_its_own_is_refused_without_a_question_and_never_run(tmp_path: Path) -> None:
    own_code(tmp_path / "model")
    done = subprocess.run([*RUN, str(tmp_path / "model"), "Hello"], input="y\ny\ny\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "'own_kind' needs code of its own" in lines[0] and "must not run" not in done.stderr


def test_code_for_a_kind_that_transformers_has_is_not_needed(tmp_path: Path) -> None:
    own_code(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert config_of(tmp_path / "model").model_type == "llama"
    assert LLM.plan_only(tmp_path / "model", memory="1GiB").used > 0
