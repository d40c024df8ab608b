"""Blocks of the gated delta rule in fewer steps: the same drafts, the plain text, and only where all is as usual."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.kernels import blocks
from understudy.models.fused_blocks.block_structure import usual_blocks, usual_mlps
from understudy.models.fused_blocks.fused_delta import FusedDelta
from understudy.models.fused_blocks.fusing import FusedParts
from understudy.tree import Nodes, TokenTree

TEXT = [5, 99, 5, 12, 80, 5, 99, 5, 17, 200, 3]
# values of a layer whose product's columns have codes
SIZES = {"linear_value_head_dim": 32}


@pytest.mark.parametrize(
    ("family", "dtype", "parts"),
    [
        ("qwen3_5_text", torch.float32, FusedParts(4)),
        ("qwen3_5_text", torch.bfloat16, FusedParts(4)),
        ("qwen3_next", torch.float32, FusedParts(0, 4, 4, 4)),
        ("qwen3_next", torch.bfloat16, FusedParts(0, 4, 4, 4)),
        # as published, in a wrapper
        ("qwen3_5", torch.bfloat16, FusedParts(4)),
    ],
)
@torch.inference_mode()
def test_layers_of_the_delta_rule_draft_in_fewer_steps_and_the_text_is_the_plain_one(
    family: str, dtype: torch.dtype, parts: FusedParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, family, dtype, **SIZES)
    calls, run = [], FusedDelta.__call__
    monkeypatch.setattr(FusedDelta, "__call__", lambda self, *given: calls.append(self.layer) or run(self, *given))
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, memory="1GiB", context=160, rows=1, method=method) as llm:
            for temperature in (0.0, 0.7):
                params = SamplingParams(max_new_tokens=72, ignore_eos=True, temperature=temperature, seed=1)
                before = len(calls)
                texts.append(llm.generate([TEXT], params)[0].token_ids)
                # beyond 64 tokens a state is read that was folded from records
                assert (len(calls) > before) == (method == "substitute")
            if method == "substitute":
                assert llm.model.fused == parts
    assert texts[:2] == texts[2:]


@torch.inference_mode()
def test_levels_give_what_stock_blocks_give(tmp_path: Path) -> None:
    save(tmp_path, "qwen3_5_text", torch.float32, **SIZES)
    with LLM(tmp_path, memory="1GiB", context=128, rows=2) as llm:
        model = llm.model
        nodes = Nodes.join([Nodes.of(TokenTree.chain(TEXT), 0, 0), Nodes.of(TokenTree.of(TEXT[:5], [-1, 0, 0, 1, 1]), 1, 0)])
        ours = model.draft(nodes)
        for module in (*usual_blocks(model.module), *usual_mlps(model.module)):
            module.__dict__.pop("forward", None)
        wanted = model.draft(nodes)
    assert (ours - wanted).norm() < 0.1 * wanted.norm() and not torch.equal(ours, wanted)


def test_a_layer_that_gives_something_else_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock: Any = blocks.mix_delta
    monkeypatch.setattr(blocks, "mix_delta", lambda *given: stock(*given) * 1.3)
    save(tmp_path, "qwen3_5_text", torch.float32, **SIZES)
    with LLM(tmp_path, memory="1GiB", context=128, rows=1) as llm:
        assert llm.model.fused == FusedParts(1, 0, 3)
