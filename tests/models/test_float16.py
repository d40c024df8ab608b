"""Weights of float16 on a processor: less than they are streams, and the text is that of transformers in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer, generated, opened, save, stock
from understudy import LLM, SamplingParams
from understudy.models.stock.shape import compute_dtype

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)


def test_a_processor_computes_in_float32() -> None:
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    assert compute_dtype(None, half, own_memory=False) == single and compute_dtype(None, half, own_memory=True) == half
    assert compute_dtype(None, brain, own_memory=False) == brain and compute_dtype(half, brain, own_memory=False) == half


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen3_5_text", "deepseek_v3"])
def test_tokens_are_those_of_transformers_in_float32(family: str, tmp_path: Path) -> None:
    model = stock(family, torch.float16)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with opened(tmp_path / "model", context=128) as llm:
        done, plan, fused = llm.generate(PROMPT, GREEDY)[0], llm.plan, llm.model.supply.fused(torch.float32)
        stored = {entry.dtype for entry in llm.store.linears.values()}
    assert done.token_ids == generated(model.float(), PROMPT, 20)
    assert done.stats.accepted > 0 and done.stats.bytes_streamed > 0 and fused
    assert stored == {torch.float16} and "computed with in float32" in " ".join(plan.notes)


@settings(max_examples=8, deadline=None)
@given(
    temperature=st.sampled_from([0.0, 0.7]), rows=st.integers(1, 3), length=st.integers(1, 70), seed=st.integers(0, 99),
    resident=st.sampled_from(["none", "residual", "whole"]), codec=st.sampled_from(["raw", "delta"]),
)  # fmt: skip
def test_drafting_changes_no_token(
    tmp_path_factory: pytest.TempPathFactory, temperature: float, rows: int, length: int, seed: int, resident: str, codec: str
) -> None:
    place = tmp_path_factory.mktemp("drawn")
    save(place / "model", "qwen3", torch.float16)
    prompts = [[(seed + 7 * i * i + 3 * i) % 251 for i in range(length + 9 * row)] for row in range(rows)]
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=temperature, seed=seed)
    with opened(place / "model", context=128, method="none", codec=codec, output=place / "store") as llm:
        assert {entry.codec for entry in llm.store.linears.values()} == {codec}
        plain = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]
    with opened(place / "store", context=128, rows=rows, resident=resident) as llm:
        drafted = llm.generate(prompts, params)
    assert [done.token_ids for done in drafted] == plain and max(done.stats.accepted for done in drafted) > 0


def test_what_is_told_to_compute_in_float16_does(tmp_path: Path) -> None:
    """Its weights are made whole, whatever they are stored as."""
    save(tmp_path / "model", "llama", torch.float16)
    found = []
    for method, codec in (("none", "raw"), ("none", "delta"), ("substitute", "raw"), ("substitute", "delta")):
        with opened(tmp_path / "model", context=128, dtype="float16", method=method, codec=codec) as llm:
            found.append(llm.generate(PROMPT, GREEDY)[0].token_ids)
            assert llm.model.dtype == torch.float16 and not llm.plan.notes
            assert {entry.codec for entry in llm.store.linears.values()} == {codec}
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(("family", "once"), [("llama", False), ("qwen3_moe", False), ("llama", True)])
def test_what_a_copy_leaves_open_streams(family: str, once: bool, tmp_path: Path) -> None:
    """`once`: the weights were bfloat16 before they were float16, and take what those take."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2}
    model = stock(family, torch.bfloat16 if once else torch.float32, **sizes).half()
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    texts, streamed, foretold = [], [], []
    for codec, method in (("raw", "none"), ("delta", "none"), ("delta", "substitute")):
        with opened(tmp_path / "model", context=128, codec=codec, method=method, bits=4, output=tmp_path / codec) as llm:
            done = llm.generate(PROMPT, GREEDY)[0]
            assert {(entry.codec, entry.dtype) for entry in llm.store.linears.values()} == {(codec, torch.float16)}
            assert llm.model.supply.fused(torch.float32) and (method == "none" or done.stats.accepted > 0)
            foretold.append(llm.plan.streamed_bytes)
        texts.append(done.token_ids)
        streamed.append(done.stats.bytes_streamed / done.stats.rounds)
    assert texts[0] == texts[1] == texts[2] == generated(model.float(), PROMPT, 20)
    least, most = (0.4, 0.65) if once else (0.6, 0.8)
    assert least < streamed[1] / streamed[0] < most and least < foretold[1] / foretold[0] < most


def test_a_plan_foretells_what_it_takes(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float16, hidden_size=256, intermediate_size=512)
    asked: dict[str, Any] = {"context": 128, "resident": "none", "rows": 1, "bits": 4, "head_bits": 4, "method": "none"}
    raw, delta = (LLM.plan_only(tmp_path / "model", codec=codec, **asked).streamed_bytes for codec in ("raw", "delta"))
    assert 10 / 16 < delta / raw < 11.5 / 16
    with opened(tmp_path / "model", codec="delta", **{**asked, "output": tmp_path / "store"}) as llm:
        assert abs(llm.plan.streamed_bytes / delta - 1) < 0.05
