"""The output head alone gives the logits of the whole model, with all that its class does to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import FAMILIES, MORE_FAMILIES, save, stock, wrapper
from understudy import LLM
from understudy.drafters import DRAFTERS, Base, DrafterSpec, TargetModel
from understudy.models.output_head import OutputHead
from understudy.models.stock import structure
from understudy.models.streamed import CurrentPass, pair

IDS = torch.tensor([[5, 99, 5, 12, 80, 7]])
# What is done to logits after the product: softcaps, scales of several names, biases, nothing.
KINDS = [*FAMILIES, *MORE_FAMILIES, "gemma3", "qwen3_5", "mistral3"]


def by(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ weight.T


def told(kind: str) -> Any:
    """A stock model whose class does not tell where its headless part is."""
    model = structure.stock(wrapper(kind))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("kind", [*KINDS, "llama4"])
def test_features_are_scored_as_the_stock_model_scores_them(kind: str) -> None:
    model = told(kind) if kind == "llama4" else stock(kind)
    heard: list[Any] = []
    model.get_decoder().register_forward_hook(lambda *given: heard.append(given[-1].last_hidden_state))
    with torch.no_grad():
        wanted = model(IDS).logits
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    current = CurrentPass()
    pair(model, [name], current)
    if head.bias is not None:
        model.get_submodule(name).bias = nn.Parameter(head.bias)
    score = OutputHead(model, current, 0, by(head.weight.detach()))
    (features,) = heard
    torch.testing.assert_close(score(features), wanted)
    torch.testing.assert_close(score(features[0, :2]), wanted[0, :2])
    assert current.under_way is None and not model.get_submodule(name).weight.numel()


def test_a_pass_that_is_under_way_goes_on_afterwards() -> None:
    model, current = stock("llama"), CurrentPass()
    weight = model.lm_head.weight.detach()
    pair(model, ["lm_head"], current)
    current.under_way = before = object()  # type: ignore[assignment]
    OutputHead(model, current, 0, by(weight))(torch.zeros(3, 64))
    assert current.under_way is before


class ScoringSpec(DrafterSpec):
    """Wants the copy of the output head alone."""

    holds_head = True

    def open(self, target: TargetModel) -> Base:
        return Base()


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_the_copy_of_the_head_alone_is_held_and_counted(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "scoring", f"{__name__}:ScoringSpec")
    save(tmp_path / "model", "gemma2", torch.bfloat16)
    options = {"memory": "1GiB", "context": 64, "rows": 1, "codec": codec, "resident": "none"}
    LLM.prepare(tmp_path / "model", codec=codec)
    plans = {method: LLM.plan_only(tmp_path / "model", **options, method=method) for method in ("none", "scoring", "substitute")}
    held = {method: plan.items["substitute"] for method, plan in plans.items()}
    with LLM(tmp_path / "model", **options, method="scoring") as llm:
        model = llm.model
        own = [sum(t.nbytes for t in tensors.values()) for tensors in model.weights.substitutes]
        assert sum(own) == llm.plan.items["substitute"] == held["scoring"]
        assert (codec == "raw") == (held["none"] == 0), "the residual is decoded with the copy"
        assert codec == "delta" or (own[-1] == held["scoring"] and held["scoring"] < held["substitute"])
        features = torch.randn(2, 64, dtype=torch.bfloat16)
        logits = model.score(features)
        copy = model.weights.quantizers[-1].dequantize(model.weights.substitutes[-1], (256, 64))
        assert logits.shape == (2, 256) and logits.abs().max() <= 10, "the softcap"
        wanted = 10 * torch.tanh(features.float() @ copy.float().T / 10)
        torch.testing.assert_close(logits.float(), wanted, rtol=0.1, atol=0.2)
        tokens = torch.tensor([5, 99, 5])
        rows = model.embed(tokens)
        assert rows.shape == (3, 64) and torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    with LLM(tmp_path / "model", **options, method="none") as llm, pytest.raises(AssertionError, match="is not held"):
        llm.model.score(features)
