"""A mixture that is made of a dense model writes what that one writes, where its experts are no different."""

import json
from pathlib import Path

import pytest
import torch

import upcycle
from tests.tiny import opened, save
from understudy import SamplingParams
from understudy.weights.checkpoint import Checkpoint

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99]
PARAMS = SamplingParams(max_new_tokens=16, ignore_eos=True)


def test_experts_that_are_alike_write_the_dense_models_text(tmp_path: Path) -> None:
    save(tmp_path / "dense", "llama", intermediate_size=192)
    arguments = ["--output", str(tmp_path / "moe"), "--experts", "8", "--chosen", "2", "--noise", "0"]
    assert upcycle.main([str(tmp_path / "dense"), *arguments]) == 0
    with opened(tmp_path / "dense") as llm:
        expected = llm.generate(PROMPT, PARAMS)[0].token_ids
    with opened(tmp_path / "moe", method="none") as llm:
        mixtures = [entry for entry in llm.store.linears.values() if entry.experts]
        done = llm.generate(PROMPT, PARAMS)[0]
    assert done.token_ids == expected and len(set(expected)) > 3
    assert len(mixtures) == 6 and {(entry.experts, entry.chosen) for entry in mixtures} == {(8, 2)}
    assert done.stats.bytes_streamed < done.stats.rounds * sum(entry.nbytes for entry in mixtures) // 2


def test_noise_makes_each_expert_another(tmp_path: Path) -> None:
    save(tmp_path / "dense", "llama", torch.bfloat16)
    upcycle.write(tmp_path / "dense", tmp_path / "moe", 4, 2, 0.1)
    dense, made = Checkpoint.open(tmp_path / "dense"), Checkpoint.open(tmp_path / "moe")
    whole = dense.read("model.layers.1.mlp.up_proj.weight").float()
    own = [made.read(f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight").float() for e in range(4)]
    assert all(0.08 < (each - whole).std() / whole.std() < 0.12 for each in own) and not torch.equal(own[0], own[1])
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["model_type"] == "mixtral" and config["num_local_experts"] == 4


def test_other_kinds_cannot_be_made_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "dense", "qwen3")
    assert upcycle.main([str(tmp_path / "dense"), "--output", str(tmp_path / "moe")]) == 1
    assert "'qwen3' cannot be made a mixture" in capsys.readouterr().err and not (tmp_path / "moe").exists()
