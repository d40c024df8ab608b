"""A parameter is found under each name that transformers would load it from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.tiny import COMMON, FAMILIES, MIXTURES, generated, save
from understudy import LLM, SamplingParams, startup
from understudy.models.stock import names, structure
from understudy.models.stock.names import finder
from understudy.models.streamed import attention_name


def test_with_the_bases_prefix_and_without() -> None:
    model = structure.skeleton(AutoConfig.for_model("llama", **COMMON), torch.float32, attention_name())
    find = finder(model, ["norm.weight", "model.layers.0.mlp.up_proj.weight"])
    assert find("model.norm.weight") == "norm.weight"
    assert find("layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert find("lm_head.weight") is None


def test_under_a_name_that_transformers_changes() -> None:
    model = structure.skeleton(AutoConfig.for_model("gpt_neox", **COMMON), torch.float32, attention_name())
    assert finder(model, ["embed_out.weight", "gpt_neox.embed_in.weight"])("lm_head.weight") == "embed_out.weight"


def test_a_head_under_another_name_is_not_taken_for_a_tied_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = save(tmp_path / "model", "gpt_neox", num_key_value_heads=4)
    prompt = [5, 9, 200, 31, 7, 7, 90]
    for method in ("none", "substitute"):
        with LLM(tmp_path / "model", method=method, memory="1GiB", context=128) as llm:
            done = llm.generate(prompt, SamplingParams(max_new_tokens=24, ignore_eos=True))[0]
        assert done.token_ids == generated(model, prompt, 24)


def test_a_parameter_that_transformers_joins_of_several() -> None:
    model = structure.skeleton(config_of_family("olmo_hybrid"), torch.float32, attention_name())
    pieces = tuple(f"model.layers.0.linear_attn.{which}_conv1d.weight" for which in "qkv")
    find = finder(model, [*reversed(pieces), "model.norm.weight"])
    assert find("model.layers.0.linear_attn.conv1d.weight") is None
    assert find.sources("model.layers.0.linear_attn.conv1d.weight") == pieces, "queries, keys, values, in whatever order they lie"
    assert find.sources("model.norm.weight") == ("model.norm.weight",) and find.sources("lm_head.weight") == ()
    assert finder(model, pieces[:2]).sources("model.layers.0.linear_attn.conv1d.weight") == ()


def test_experts_that_are_stored_one_by_one() -> None:
    """By their numbers, not by their names, the matrices of each side by side; where one is missing there is no weight."""
    model = structure.skeleton(config_of_family("qwen3_moe", num_experts=12), torch.float32, attention_name())
    layer = "model.layers.1.mlp.experts"
    stored = {p: [f"{layer}.{e}.{p}_proj.weight" for e in range(12)] for p in ("gate", "up", "down")}
    every = [name for names in stored.values() for name in names]
    find = finder(model, sorted(every))
    assert find(f"{layer}.gate_up_proj") is None
    assert "by MergeModulelist, Concatenate" in str(find.conversion(f"{layer}.gate_up_proj"))
    both = tuple(name for pair in zip(stored["gate"], stored["up"], strict=True) for name in pair)
    assert find.sources(f"{layer}.gate_up_proj") == both and find.sources(f"{layer}.down_proj") == tuple(stored["down"])
    assert find.sources("model.layers.0.mlp.experts.down_proj") == ()
    assert finder(model, stored["gate"]).sources(f"{layer}.gate_up_proj") == (), "nothing to gate"


def test_a_model_without_a_head_takes_each_tensor_once() -> None:
    """Its parameters have no prefix that could be left out."""
    model = AutoModel.from_config(config_of_family("qwen3_moe"))
    names = [f"layers.1.mlp.experts.{e}.{p}_proj.weight" for e in range(8) for p in ("gate", "up")]
    assert finder(model, names).sources("layers.1.mlp.experts.gate_up_proj") == tuple(names)


def test_experts_under_the_names_of_other_families() -> None:
    mixtral = structure.skeleton(config_of_family("mixtral"), torch.float32, attention_name())
    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w{i}.weight" for i in (2, 3, 1) for e in (0, 1)]
    found = finder(mixtral, names).sources("model.layers.0.mlp.experts.gate_up_proj")
    assert [name.split(".")[-3:-1] for name in found] == [["0", "w1"], ["0", "w3"], ["1", "w1"], ["1", "w3"]]
    whole = structure.skeleton(config_of_family("granitemoe"), torch.float32, attention_name())
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    assert finder(whole, [name]).sources("model.layers.0.block_sparse_moe.experts.gate_up_proj") == (name,)


def config_of_family(family: str, **changes: Any) -> Any:
    return AutoConfig.for_model(family, **{**COMMON, **(FAMILIES | MIXTURES)[family], **changes})


@pytest.fixture()
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a command's."""
    monkeypatch.setattr(startup, "_owned", [True])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gets an entry whenever names are looked for in transformers' table."""
    calls: list[Any] = []
    found = names.finder

    def find(*given: Any) -> Any:
        calls.append(given)
        return found(*given)

    monkeypatch.setattr(names, "finder", find)
    return calls


WANTED = ("model.norm.weight", "model.layers.0.linear_attn.q_conv1d.weight", "model.layers.1.nothing")


@pytest.mark.usefixtures("commands")
def test_a_command_looks_for_names_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = structure.skeleton(config_of_family("olmo_hybrid"), torch.float32, attention_name())
    pieces = ["model.norm.weight", "model.layers.0.linear_attn.q_conv1d.weight"]
    calls = counted(monkeypatch)
    expected = {WANTED[0]: (pieces[0],), WANTED[1]: (pieces[1],), WANTED[2]: ()}
    for _ in range(2):
        assert names.sources(model, WANTED, pieces, tmp_path) == expected
    assert len(calls) == 1
    # another checkpoint, and other parameters
    assert names.sources(model, WANTED, pieces[:1], tmp_path) == expected | {WANTED[1]: ()}
    assert names.sources(model, WANTED[:1], pieces, tmp_path) == {WANTED[0]: (pieces[0],)}
    assert len(calls) == 3


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("damage", ["", "{}", '{"sources": {}}', '{"sources": 3}', '{"sources": {"model.norm.weight": ["gone"]}}'])
def test_what_was_kept_and_cannot_be_used_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    model = structure.skeleton(AutoConfig.for_model("llama", **COMMON), torch.float32, attention_name())
    names.sources(model, WANTED[:1], WANTED[:1], tmp_path)
    (file,) = (tmp_path / "names").iterdir()
    file.write_text(damage)
    calls = counted(monkeypatch)
    for _ in range(2):
        assert names.sources(model, WANTED[:1], WANTED[:1], tmp_path) == {WANTED[0]: (WANTED[0],)}
    assert len(calls) == 1


def test_a_program_of_somebody_elses_may_change_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = structure.skeleton(AutoConfig.for_model("llama", **COMMON), torch.float32, attention_name())
    calls = counted(monkeypatch)
    for _ in range(2):
        assert names.sources(model, WANTED[:1], WANTED[:1], tmp_path) == {WANTED[0]: (WANTED[0],)}
    assert len(calls) == 2 and list(tmp_path.iterdir()) == []
