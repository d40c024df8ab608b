"""Weights of float16 on a processor: less than they are streams, and the text is that of transformers in float32."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer, generated, opened, save, stock
from understudy import SamplingParams
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
    resident=st.sampled_from(["none", "whole"]),
)  # fmt: skip
def test_drafting_changes_no_token(
    tmp_path_factory: pytest.TempPathFactory, temperature: float, rows: int, length: int, seed: int, resident: str
) -> None:
    place = tmp_path_factory.mktemp("drawn")
    save(place / "model", "qwen3", torch.float16)
    prompts = [[(seed + 7 * i * i + 3 * i) % 251 for i in range(length + 9 * row)] for row in range(rows)]
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=temperature, seed=seed)
    with opened(place / "model", context=128, method="none", output=place / "store") as llm:
        plain = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]
    with opened(place / "store", context=128, rows=rows, resident=resident) as llm:
        drafted = llm.generate(prompts, params)
    assert [done.token_ids for done in drafted] == plain and max(done.stats.accepted for done in drafted) > 0


def test_what_is_told_to_compute_in_float16_does(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float16)
    found = []
    for method in ("none", "substitute"):
        with opened(tmp_path / "model", context=128, dtype="float16", method=method) as llm:
            found.append(llm.generate(PROMPT, GREEDY)[0].token_ids)
            assert llm.model.dtype == torch.float16 and not llm.plan.notes
    assert found[0] == found[1]
