"""The frozen target says what the stock model says."""

from pathlib import Path

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.models.configuration import config_of
from understudy.training.target import FrozenTarget, is_tied


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
        assert torch.equal(target.embed(tokens), stock.get_input_embeddings()(tokens))
        norm = target.weights.norm
        assert norm is not None
        rms = features / features.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(stock.model.norm(features), rms * norm, rtol=1e-3, atol=1e-3)
    assert is_tied(store) == (family in ("llama-tied", "gemma2"))
    layer = target.weights.layer
    assert torch.equal(layer["self_attn.q_proj.weight"], stock.model.layers[-1].self_attn.q_proj.weight)
    assert not any(parameter.requires_grad for parameter in target.parameters())
