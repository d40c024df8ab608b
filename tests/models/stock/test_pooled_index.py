"""Indices of blocks: what a pass is asked is what stock code chooses by, and a proof sees another choice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import opened, save, stock, values_of
from understudy.devices import DEVICES
from understudy.errors import CheckpointError, UsageError
from understudy.models.pooled_keys import PooledQuery
from understudy.models.proving import proof
from understudy.models.stock import pooled_index, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name

FAMILY = "qwen4_exp_text"


def config_of(**changes: Any) -> Any:
    return AutoConfig.for_model(**values_of(FAMILY, **changes))


def test_layers_with_an_index_keep_its_keys() -> None:
    model = structure.skeleton(config_of(), torch.float32, attention_name())
    found = [module.layer_idx for module in model.modules() if pooled_index.pools(module)]
    assert found == [1, 3] and [layer.index_size for layer in ModelShape.of(config_of()).layers] == [0, 16, 0, 16]
    structure.check_structure(model)


def test_a_pass_is_asked_by_the_parts_of_stock_code() -> None:
    """Keys of whole blocks are those of a mean, normed and turned by the position of the block's first token."""
    model = stock(FAMILY).model
    index: Any = model.layers[1].self_attn.indexer
    assert pooled_index.install_pooled_indices(model) == 2
    asked: list[Any] = []

    class Pass:
        def choose(self, *given: Any) -> str:
            asked[:] = given
            return "chosen"

    class Holder:
        under_way = Pass()

    object.__setattr__(index, "understudy", Holder())
    hidden, positions = torch.randn(1, 5, 64), torch.arange(40, 45)[None]
    turns = model.rotary_emb(hidden, positions)
    assert index(hidden, turns, None, None) == "chosen"
    layer, kept, query = asked
    made = index.index_qk_proj(hidden)
    assert layer == 1 and torch.equal(kept, made[0, :, -16:]) and query.queries.shape == (5, 32, 16)
    assert (query.most, query.block, query.scale) == (3, 4, 0.25) and query.weights is None
    tokens, starts = torch.randn(2, 4, 16), torch.tensor([8, 60])
    from transformers.models.qwen4_exp.modeling_qwen4_exp import apply_rotary_pos_emb

    cos, sin = model.rotary_emb(hidden, starts[None])
    normed = index.k_layernorm(tokens.mean(1))[None, None]
    torch.testing.assert_close(query.pool(tokens, starts), apply_rotary_pos_emb(normed, cos=cos, sin=sin)[0, 0])


@pytest.mark.parametrize("change", [{"most": 2}, {"block": 5}])
def test_a_proof_sees_an_index_that_chooses_otherwise(change: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert proof.fault(config_of()) is None
    monkeypatch.setattr(pooled_index, "PooledQuery", lambda *asked: replace(PooledQuery(*asked), **change))
    assert "gives other logits" in str(proof.fault(config_of()))


def test_a_proof_sees_keys_that_are_turned_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = pooled_index._pooled

    def one_off(index: Any, turns: Any, tokens: Tensor, starts: Tensor) -> Tensor:
        return usual(index, turns, tokens, starts + 3)

    monkeypatch.setattr(pooled_index, "_pooled", one_off)
    assert "gives other logits" in str(proof.fault(config_of()))


def test_a_model_without_turns_is_refused() -> None:
    index = stock(FAMILY).model.layers[1].self_attn
    with pytest.raises(CheckpointError, match="has an index of blocks and no rotary_emb"):
        pooled_index.install_pooled_indices(nn.Sequential(index))
    assert pooled_index.install_pooled_indices(nn.Linear(2, 2)) == 0


def test_such_models_are_for_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, FAMILY, torch.bfloat16)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    with pytest.raises(UsageError, match="An index of this model chooses blocks of tokens, which runs on the processor alone"):
        opened(tmp_path, device="fake")
    config = config_of(layer_types=["linear_attention"] * 4)
    assert ModelShape.of(config).alone == "This model looks n-grams up"
