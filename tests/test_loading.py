"""Plans need no Store and foretell it; a config alone is planned for; the device is opened once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.published import GEMMA4_12B, GEMMA4_31B, GEMMA4_E4B
from tests.tiny import byte_tokenizer, opened, save
from understudy import LLM, loading, planning, startup
from understudy.devices import open_device
from understudy.drawable import plan_for
from understudy.errors import CheckpointError, UsageError
from understudy.options import Options
from understudy.plan.demand import EXPECTED_GROWTH, MIB, REST
from understudy.plan.memory import columns_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save(directory, "llama", torch.bfloat16)
    return directory


def options(tmp_path: Path, **given: Any) -> Options:
    return Options.of(given, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize("bits", [2, 3, 4, "mixed"])
def test_a_plan_needs_no_store_and_foretells_it(
    bits: int | str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    for codec in ("raw", "delta"):
        chosen = {"bits": bits, "codec": codec}
        foretold = LLM.plan_only(model, memory="1GiB", context=256, resident="none", **chosen)
        assert foretold.notes and not list((tmp_path / "cache").glob("*/index.json")), "nothing was prepared"
        LLM.prepare(model, **chosen)
        known = LLM.plan_only(model, memory="1GiB", context=256, resident="none", **chosen)
        exact = 0 if bits != "mixed" else known.items["substitute"] * 0.1
        assert not known.notes and abs(known.items["substitute"] - foretold.items["substitute"]) <= exact
        assert abs(known.streamed_bytes - foretold.streamed_bytes) < 0.2 * known.streamed_bytes
        for path in (tmp_path / "cache").glob("*/index.json"):
            path.unlink()
            shutil.rmtree(path.parent)


QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
}  # fmt: skip


def config_in(directory: Path, **content: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_config_alone_is_planned_for_as_its_checkpoint(tmp_path: Path, codec: str) -> None:
    for family in ("llama-tied", "gemma3_text", "phi3"):
        save(tmp_path / family, family, torch.bfloat16)
        alone = tmp_path / f"{family}-config"
        alone.mkdir()
        shutil.copy(tmp_path / family / "config.json", alone)
        chosen = options(tmp_path, memory="1GiB", context=256, codec=codec, rows=1)
        found, expected = plan_for(alone, chosen, config_alone=True), plan_for(tmp_path / family, chosen)
        assert (found.items, found.residents, found.residual_bytes) == (expected.items, expected.residents, expected.residual_bytes)
        assert found.plain_tokens_per_second is None
        assert plan_for(alone / "config.json", chosen, config_alone=True).items == found.items


@pytest.mark.parametrize(("bits", "memory", "codec"), [(4, 5.0e9, "raw"), (4, 5.0e9, "delta"), (3, 4.0e9, "raw")])
def test_seven_billion_parameters_fit(tmp_path: Path, bits: int, memory: float, codec: str) -> None:
    directory = config_in(tmp_path / "qwen", **QWEN_7B)
    chosen = options(tmp_path, memory=int(memory), context=2048, codec=codec, rows=1, bits=bits)
    plan = plan_for(directory, chosen, config_alone=True)
    assert plan.context == 2048 and plan.used <= memory * 0.98
    assert plan.items["substitute"] == pytest.approx(7.07e9 * (bits + 0.5) / 8, rel=0.01)
    assert plan.items["KV cache"] == 2 * 28 * 4 * 128 * 2 * columns_of(2048, plan.scratch)


def test_configs_that_cannot_be_planned_for_are_refused(tmp_path: Path) -> None:
    chosen = options(tmp_path, memory="1GiB", rows=1)
    with pytest.raises(CheckpointError, match=r"'t5' is not supported yet"):
        plan_for(config_in(tmp_path / "encoder", model_type="t5", is_encoder_decoder=True), chosen, config_alone=True)
    with pytest.raises(UsageError, match=r"--config takes the directory of one"):
        plan_for(tmp_path / "nowhere", chosen, config_alone=True)
    untyped = config_in(tmp_path / "untyped", **{k: v for k, v in QWEN_7B.items() if k != "torch_dtype"})
    with pytest.raises(UsageError, match=r"--dtype"):
        plan_for(untyped, chosen, config_alone=True)
    plan_for(untyped, options(tmp_path, memory="6GB", dtype="bfloat16", rows=1), config_alone=True)
    with pytest.raises(CheckpointError, match=r"plan --config"):
        plan_for(untyped, chosen)
    with pytest.raises(UsageError, match="not both"):
        LLM.plan_only(untyped, config=untyped)


@pytest.mark.parametrize("codec", ["auto", "raw"])
def test_the_device_is_opened_once(codec: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a codec is chosen for it, a Store prepared, and a second model loaded beside the first."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    calls: list[str] = []
    monkeypatch.setattr(planning, "open_device", lambda name, *_: calls.append(name) or open_device(name))
    chosen = {"memory": "1GiB", "context": 64, "rows": 1, "codec": codec, "method": f"classic:{model}"}
    LLM.plan_only(model, **chosen)
    assert calls == ["auto"]
    calls.clear()
    with LLM(model, **chosen) as llm:
        assert llm.plan.items["draft model"] > 0 and llm.model.companion is not None
    assert calls == ["auto"]


def test_host_memory_is_refused_where_there_is_no_device_in_front_of_it(tmp_path: Path) -> None:
    """Before anything is looked for: the model that is named is not there."""
    given = {"host_memory": "32GiB"}
    for refused in (lambda: LLM(tmp_path, **given), lambda: LLM.plan_only(tmp_path, **given)):
        with pytest.raises(UsageError, match="--host-memory is for an accelerator"):
            refused()
    with pytest.raises(UsageError, match="--host-memory is for an accelerator"):
        LLM.plan_only(config=tmp_path, **given)


@pytest.mark.parametrize(
    ("published", "machine", "context", "kv_bytes"),
    [
        # sliding layers hold every slot of so short a context: 50 of 16 heads of 256 + 256, 10 of 4 heads of 512 + 512
        (GEMMA4_31B, "cuda:memory=24GB,link=25GB/s", 512, lambda slots: slots * 2 * (50 * 16 * 512 + 10 * 4 * 1024)),
        # 40 layers hold 1024 + 320 + 256 tokens, 8 layers all
        (GEMMA4_12B, "cpu:memory=16GB,disk=3.5GB/s", 4096, lambda slots: 2 * (1600 * 40 * 8 * 512 + slots * 8 * 1024)),
        # 18 layers hold nothing, and all tokens are held where those read: in four global layers and a sliding one
        (GEMMA4_E4B, "cpu:memory=16GB,disk=3.5GB/s", 4096, lambda slots: 2 * (1088 * 19 * 2 * 512 + slots * 2 * (512 + 4 * 1024))),
    ],
    ids=["31B", "12B", "E4B"],
)
def test_keys_and_values_of_gemma_4_are_counted_layer_by_layer(
    published: dict[str, Any], machine: str, context: int, kv_bytes: Callable[[int], int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published))
    plan = LLM.plan_only(config=tmp_path, machine=machine, context=context, rows=1)
    assert plan.items["KV cache"] == kv_bytes(columns_of(context, plan.scratch))
    assert 0 < plan.least_bytes <= plan.budget_bytes
    text = "\n".join(plan.lines())
    assert "smallest --memory" in text and "tok/s" in text
    if machine.startswith("cpu"):
        assert plan.items["embedding rows"] < 32 << 20, "tables of gigabytes stay on the disk"


@pytest.mark.parametrize(
    ("own", "before", "now", "runtime", "grown"),
    [
        (True, 300, 360, 388, -8),
        (True, 300, 500, 388, 132),
        (True, 420, 420, 490, -50),
        (True, 600, 600, 490, 0),
        (False, 300, 310, 490, 0),
        (False, 300, 500, 490, 132),
    ],
    ids=["as planned", "it compiled", "a second model", "an earlier model left much", "of another", "of another, which compiled"],
)
def test_what_a_process_holds_more_or_less_than_planned_is_counted_once_kernels_are_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, own: bool, before: int, now: int, runtime: int, grown: int
) -> None:
    assert (EXPECTED_GROWTH, REST) == (68 * MIB, 20 * MIB), "the numbers below are for these"
    plan = LLM.plan_only(model, memory="1GiB", context=256)
    plan = replace(plan, items={**plan.items, "runtime": runtime * MIB, "tokenizer": 0})
    monkeypatch.setattr(startup, "_owned", [own])
    monkeypatch.setattr(loading, "resident_bytes", lambda: now * MIB)
    assert loading._grown(before * MIB, plan) == grown * MIB


def test_what_memory_does_not_hold_is_refused_before_it_is_prepared(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr("understudy.plan.machine.spare_bytes", lambda: planning.PREPARING - 1)
    with pytest.raises(UsageError, match=r"Preparing this model, which is done once, takes up to 241 MiB .* start again"):
        LLM(model, memory="1GiB", context=256)
    assert not list(tmp_path.glob("model-*")), "nothing was begun"


def test_the_template_for_tools_comes_from_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers keeps a model's other templates in a folder of their own."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "model"
    save(directory)
    tokenizer: Any = byte_tokenizer()
    said = "{{ messages[0].content }}"
    tokenizer.chat_template = {"default": said, "tool_use": "[{{ tools | length }}]" + said}
    tokenizer.save_pretrained(directory)
    assert (directory / "additional_chat_templates" / "tool_use.jinja").is_file()
    store = LLM.prepare(directory)
    messages = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
    for place in (directory, store.path):
        with opened(place) as llm:
            texts = [llm.tokenizer.decode(llm.chat_ids(messages, **given)) for given in ({}, {"tools": [tool]})]
        assert texts == ["Hi", "[1]Hi"], place
