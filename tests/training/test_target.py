"""The frozen target says what the stock model says."""

from pathlib import Path

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.models.stock.configuration import config_of
from understudy.training.target import FrozenLinear, FrozenTarget, is_tied


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "granite"])
def test_scores_and_first_values_are_those_of_the_stock_model(tmp_path: Path, family: str) -> None:
    stock = save(tmp_path / "model", family, torch.float32)
    store = LLM.prepare(tmp_path / "model")
    target = FrozenTarget(store, config_of(store.path))
    features = torch.randn(1, 5, 64)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        wanted = stock(tokens, output_hidden_states=True)
        torch.testing.assert_close(target.score(wanted.hidden_states[-1]), wanted.logits, rtol=1e-3, atol=1e-3)
        among, features_of = torch.tensor([2, 9, 5]), wanted.hidden_states[-1][0]
        some = target.score_among(features_of, among)
        torch.testing.assert_close(some, wanted.logits[0][:, among], rtol=1e-3, atol=1e-3)
        assert torch.equal(target.score_among(features_of, among.flip(0)), some.flip(1)), "other tokens, other rows"
        assert torch.equal(target.first_choices(features_of), target.score(features_of).argmax(-1)), "all tokens again"
        assert torch.equal(target.embed(tokens), stock.get_input_embeddings()(tokens))
        norm = target.weights.norm
        assert norm is not None
        rms = features / features.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(stock.model.norm(features), rms * norm, rtol=1e-3, atol=1e-3)
    assert is_tied(store) == (family in ("llama-tied", "gemma2"))
    layer = target.weights.layer
    assert torch.equal(layer["self_attn.q_proj.weight"], stock.model.layers[-1].self_attn.q_proj.weight)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_what_autocast_multiplies_with_is_made_of_the_output_head_once() -> None:
    linear = FrozenLinear(8, 3, bias=False).requires_grad_(False)
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        first, kept = linear(x), linear.cast
        assert torch.equal(linear(x), first) and linear.cast is kept is not None
    assert first.dtype == torch.bfloat16 and torch.equal(first, x.bfloat16() @ linear.weight.bfloat16().T)
    first.sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, linear.weight.bfloat16().float().sum(0).expand(5, 8), atol=0.05)
    assert torch.equal(linear(x), x @ linear.weight.T)


def test_some_rows_of_the_output_head_are_taken_out_once() -> None:
    linear = FrozenLinear(8, 6, bias=True).requires_grad_(False)
    x, rows = torch.randn(5, 8), torch.tensor([4, 1])
    with linear.only(rows):
        torch.testing.assert_close(linear(x), (x @ linear.weight.T + linear.bias)[:, rows])
        kept = linear.chosen
    with linear.only(rows):
        linear(x)
        assert linear.chosen is kept is not None
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x).dtype == torch.bfloat16
    assert linear(x).shape == (5, 6)
