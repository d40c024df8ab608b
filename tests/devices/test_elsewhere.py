"""A plan for another machine: its memory, its link, its speed, with nothing of this machine in it."""

import json
from pathlib import Path

import pytest

from understudy import LLM
from understudy.errors import UsageError

# Qwen2.5-7B, as its config.json says
QWEN_7B = {
    "model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    return tmp_path


def test_a_card_that_is_not_here_is_planned_for(config: Path) -> None:
    plan = LLM.plan_only(config=config, machine="cuda:memory=8GB,link=25GB/s,host=32GB,bandwidth=500GB/s")
    assert plan.device == "cuda" and plan.used <= plan.budget_bytes <= 8 * 10**9
    assert plan.link_bytes_per_second == pytest.approx(25e9)
    # delta streams less than half of 13 GB: more than 3 passes a second, and drafting multiplies that
    assert plan.plain_tokens_per_second is not None and 3 < plan.plain_tokens_per_second < 5
    predicted = plan.predicted(8, 8)
    assert predicted is not None and predicted > 4 * plan.plain_tokens_per_second
    assert any("for another machine" in note for note in plan.notes)


def test_what_the_host_cannot_hold_comes_from_its_disk(config: Path) -> None:
    small = "cuda:memory=8GB,link=25GB/s,disk=2GB/s,host=4GB,bandwidth=500GB/s"
    plan = LLM.plan_only(config=config, machine=small)
    assert plan.link_bytes_per_second < 6e9 and any("come from disk" in note for note in plan.notes)


def test_a_laptop_streams_from_its_disk_the_smallest_form_of_the_weights(config: Path) -> None:
    plan = LLM.plan_only(config=config, machine="cpu:memory=8GB,disk=3.5GB/s")
    assert plan.device == "cpu" and plan.link_bytes_per_second == 3.5e9
    assert plan.residual_bytes < 0.5 * plan.exact_bytes


def test_the_smallest_budget_is_told_and_is_the_smallest(config: Path) -> None:
    card = "cuda:memory=8GB,link=25GB/s"
    plan = LLM.plan_only(config=config, machine=card, context=1024)
    least = plan.to_dict()["smallest_budget"]
    assert any("smallest --memory for 1024 tokens" in line for line in plan.lines())
    assert plan.rows > 1
    assert LLM.plan_only(config=config, machine=card, context=1024, memory=least).rows == 1
    with pytest.raises(UsageError, match="too small"):
        LLM.plan_only(config=config, machine=card, context=1024, memory=least - 1)


def test_what_the_machine_does_not_have_is_refused(config: Path) -> None:
    with pytest.raises(UsageError, match="contradicts --for"):
        LLM.plan_only(config=config, machine="cuda:memory=8GB,link=25GB/s", device="cpu")
    with pytest.raises(UsageError, match="is for an accelerator"):
        LLM.plan_only(config=config, machine="cpu:memory=8GB,disk=3GB/s", host_memory="4GB")
    with pytest.raises(UsageError, match="of the machine that --for describes"):
        LLM.plan_only(config=config, machine="cpu:memory=8GB,disk=3GB/s", memory="16GB")
    with pytest.raises(UsageError, match="more than the"):
        LLM.plan_only(config=config, machine="cuda:memory=8GB,link=25GB/s", memory="16GB")
