"""Experts of a layer that run in one call in levels: only such as compute so, and only where that gives the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.kernels.draft_mixture import DraftMixture
from understudy.kernels.join_form import GateKind
from understudy.models.fused_blocks import fused_experts, fusing
from understudy.models.fused_blocks.fusing import FusedParts

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("qwen3_moe", FusedParts(0, 3, 0, 3)),
        ("mixtral", FusedParts(0, 3, 0, 3)),
        ("qwen3_next", FusedParts(0, 4, 4, 4)),
        ("deepseek_v3", FusedParts(1, 2, 2, 2)),
        # columns of both halves take turns, and experts have biases
        ("gpt_oss", FusedParts(0, 3, 0, 0)),
        # no gate
        ("nemotron_h-experts", FusedParts(0, 0, 0, 0)),
    ],
)
@torch.inference_mode()
def test_gated_experts_run_in_one_call_and_the_text_is_the_plain_one(
    family: str, parts: FusedParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, family, torch.bfloat16)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    calls, run = [], DraftMixture.__call__
    monkeypatch.setattr(DraftMixture, "__call__", lambda self, *given: calls.append(len(given[0])) or run(self, *given))
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, memory="1GiB", context=128, rows=1, method=method) as llm:
            before = len(calls)
            texts.append(llm.generate([PROMPT], params)[0])
            if method == "substitute":
                assert llm.model.fused == parts
    assert texts[0].token_ids == texts[1].token_ids and texts[1].stats.drafted > 0
    assert (len(calls) > before) == (parts.mixtures > 0)


def test_experts_that_give_something_else_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "mixtral", torch.float32)
    monkeypatch.setattr(fusing, "mixes_alike", lambda ours, sample: False)
    with LLM(tmp_path, memory="1GiB", context=128, rows=1) as llm:
        assert llm.model.fused == FusedParts(0, 3, 0, 0)


def test_a_gate_is_known_by_what_experts_make_of_both_halves() -> None:
    class Experts:
        has_bias = False

        def __init__(self, turned: bool) -> None:
            self.turned = turned

        def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
            gate, up = both.chunk(2, -1)[:: -1 if self.turned else 1]
            return nn.functional.silu(gate) * up

    usual: Any = Experts(False)
    assert fused_experts._gate_of(usual) is GateKind.SILU and fused_experts._gate_of(Experts(True)) is None
    usual.has_bias = True
    assert fused_experts._gate_of(usual) is None
