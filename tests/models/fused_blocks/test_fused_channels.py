"""Layers that forget by channel in fewer steps: the same drafts, the plain text, and only where all is as usual."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.kernels import draft_channels
from understudy.models.fused_blocks.fused_channels import FusedChannels
from understudy.models.recurrent_layers.channel_delta import ChannelDelta
from understudy.tree import Nodes, TokenTree

TEXT = [5, 99, 5, 12, 80, 5, 99, 5, 17, 200, 3]
# a layer's values fill blocks of 64 outputs
SIZES: dict[str, dict[str, Any]] = {
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 32},
    "bailing_hybrid": {"num_attention_heads": 4, "head_dim": 32},
}


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_layers_draft_in_fewer_steps_and_the_text_is_the_plain_one(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, family, dtype, **SIZES[family])
    calls, run = [], FusedChannels.__call__
    monkeypatch.setattr(FusedChannels, "__call__", lambda self, *given: calls.append(self.layer) or run(self, *given))
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, memory="1GiB", context=160, rows=1, method=method) as llm:
            for temperature in (0.0, 0.7):
                params = SamplingParams(max_new_tokens=90, ignore_eos=True, temperature=temperature, seed=1)
                before = len(calls)
                done = llm.generate([TEXT], params)[0]
                texts.append(done.token_ids)
                # beyond 64 tokens states are folded
                assert (len(calls) > before) == (method == "substitute")
                assert method == "none" or done.stats.accepted > 0
            if method == "substitute":
                layers = [module for module in llm.model.module.modules() if isinstance(module, ChannelDelta)]
                assert llm.model.fused.channels == len(layers) > 0
    assert texts[:2] == texts[2:]


@torch.inference_mode()
def test_levels_give_what_stock_layers_give(tmp_path: Path) -> None:
    save(tmp_path, "kimi_linear", torch.float32, **SIZES["kimi_linear"])
    with LLM(tmp_path, memory="1GiB", context=128, rows=2) as llm:
        model = llm.model
        nodes = Nodes.join([Nodes.of(TokenTree.chain(TEXT), 0, 0), Nodes.of(TokenTree.of(TEXT[:5], [-1, 0, 0, 1, 1]), 1, 0)])
        ours = model.draft(nodes)
        for module in model.module.modules():
            if isinstance(module, ChannelDelta):
                module.__dict__.pop("forward")
        wanted = model.draft(nodes)
    assert (ours - wanted).norm() < 0.1 * wanted.norm() and not torch.equal(ours, wanted)


@pytest.mark.parametrize("name", ["ask", "gate"])
def test_a_layer_that_gives_something_else_runs_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock: Any = getattr(draft_channels, name)
    other = {"ask": lambda made, *rest: stock(made.flip(1).contiguous(), *rest), "gate": lambda *given: stock(*given) * 1.3}
    monkeypatch.setattr(draft_channels, name, other[name])
    save(tmp_path, "kimi_linear", torch.float32, **SIZES["kimi_linear"])
    with LLM(tmp_path, memory="1GiB", context=128, rows=1) as llm:
        assert llm.model.fused.channels == 0


def test_a_layer_with_another_gate_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearForgetGate

    stock = KimiLinearForgetGate.forward
    monkeypatch.setattr(KimiLinearForgetGate, "forward", lambda self, x: 3 * stock(self, x) - 1)
    save(tmp_path, "kimi_linear", torch.float32, **SIZES["kimi_linear"])
    with LLM(tmp_path, memory="1GiB", context=128, rows=1) as llm:
        assert llm.model.fused.channels == 0
