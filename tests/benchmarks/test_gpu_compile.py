"""Levels with fused, stock and compiled blocks, on a simulated device: alike, compiled once for all layers, and put back."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

pytest.importorskip("triton")
import gpu_compile
from gpu_print import compiled_lines
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.models.fused_blocks.block_structure import usual_blocks
from understudy.models.streamed import attention, attention_name

SECONDS = 600.0


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = tmp_path_factory.mktemp("compiled") / "model"
    save(model, "llama", torch.bfloat16, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    DEVICES["fake"] = "tests.fake_device:open_fake"
    options = {"memory": "1GiB", "resident": "none", "context": 64, "rows": 1, "device": "fake", "codec": "raw"}
    try:
        with LLM(model, method="substitute:width=2,depth=2", **options) as llm:
            # an imitation of a graph would not see what compiled code does
            llm.engine.drafter.search.recording = False
            yield llm
    finally:
        del DEVICES["fake"]


def text(llm: Any) -> list[int]:
    llm.engine.kept.clear()
    done: list[int] = llm.generate([[5, 99, 5]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids
    return done


def test_all_layers_run_one_compiled_block_and_are_put_back(llm: Any) -> None:
    before, blocks = text(llm), list(usual_blocks(llm.model.draft.model))
    ours = [vars(block)["forward"] for block in blocks]
    assert len(blocks) == llm.model.fused.blocks == 2
    found = gpu_compile.compared(llm, SECONDS, "aot_eager")
    assert "why" not in found and 0 < found["off"] < 0.1 and found["graphs"] == 1 and found["breaks"] == 0, found
    assert all(found[f"{way}_ms"] > 0 for way in ("fused", "stock", "compiled")) and found["compile_seconds"] > 0
    assert [vars(block)["forward"] for block in blocks] == ours and text(llm) == before
    first, second = compiled_lines(found)
    assert first.count(" ms") == 3 and "1 graphs, 0 breaks" in second


@pytest.mark.parametrize(("seconds", "backend", "why"), [(SECONDS, "nosuch", "InvalidBackend"), (0.01, "eager", "TimeoutError")])
def test_why_there_is_none_is_said(llm: Any, seconds: float, backend: str, why: str) -> None:
    found = gpu_compile.compared(llm, seconds, backend)
    assert found["compiled_ms"] is None and found["why"].startswith(why) and found["fused_ms"] > 0 and found["stock_ms"] > 0
    assert compiled_lines(found)[-1].startswith(f"compiled: left out, since {why}")
    assert all("forward" in vars(block) for block in usual_blocks(llm.model.draft.model))


def test_what_is_put_in_its_place_slowly_is_put_back(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm may ring at any moment, and on a busy machine it does."""
    table = type(ALL_ATTENTION_FUNCTIONS)
    for name in ("__setitem__", "__delitem__"):
        usual = getattr(table, name)
        monkeypatch.setattr(table, name, lambda *given, usual=usual: (usual(*given), time.sleep(0.05)))
    found = gpu_compile.compared(llm, 0.01, "eager")
    assert found["why"].startswith("TimeoutError") and ALL_ATTENTION_FUNCTIONS[attention_name()] is attention


def test_an_alarm_whose_error_was_dropped_rings_again() -> None:
    rung = []
    with pytest.raises(TimeoutError), gpu_compile.within(0.01):
        while True:
            try:
                time.sleep(0.5)
            except TimeoutError:
                rung.append(time.monotonic())
                if len(rung) == 2:
                    raise
    assert rung[1] - rung[0] > 0.9 * gpu_compile.AGAIN


def test_a_model_without_fused_blocks_is_left_out(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.models.fused_blocks.block_structure.usual_blocks", lambda model: {})
    assert gpu_compile.compared(llm)["why"] == "no block is fused"
