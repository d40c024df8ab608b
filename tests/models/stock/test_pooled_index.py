"""Indices of blocks: what a pass is asked is what stock code chooses by, and a proof sees another choice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import generated, opened, publish, save, stock, values_of, wrapper
from understudy import SamplingParams
from understudy.devices import DEVICES
from understudy.errors import CheckpointError, UsageError
from understudy.models.pooled_keys import PooledQuery
from understudy.models.proving import proof
from understudy.models.stock import pooled_index, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name

FAMILY, LEARNS = "qwen4_exp_text", "glm5_next"
TEXT = [(i * i * 7 + i // 3) % 251 for i in range(420)]
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.7, seed=5)


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


def test_an_index_that_learns_keeps_what_each_token_counts() -> None:
    """Its keys are those of stock code, and so is what it asks."""
    model = stock(LEARNS).model.language_model
    index: Any = model.layers[1].self_attn.indexer
    hidden, resid = torch.randn(1, 8, 64), torch.randn(1, 8, 48)
    kept: list[Any] = []
    theirs = index.get_pooled_states

    def noted(packed_states: Tensor) -> Any:
        kept[:] = packed_states, *theirs(packed_states)
        return kept[1:]

    object.__setattr__(index, "get_pooled_states", noted)
    index(hidden, resid, torch.ones(1, 8, dtype=torch.bool), None)
    packed, keys, _, _ = kept
    assert pooled_index.install_pooled_indices(model) == 2
    asked: list[Any] = []

    class Holder:
        under_way = type("Pass", (), {"choose": lambda _, *given: asked.extend(given) or "chosen"})()

    object.__setattr__(index, "understudy", Holder())
    assert index(hidden_states=hidden, q_resid=resid, attention_mask=None, past_key_values=None) == "chosen"
    layer, own, query = asked
    assert layer == 1 and torch.equal(own, packed[0, :, :32]) and (query.most, query.block, query.scale) == (3, 4, 0.25)
    torch.testing.assert_close(query.pool(own.view(2, 4, 32), torch.tensor([0, 4])), keys[0])
    assert torch.equal(query.weights, index.weights_proj(hidden)[0] * 32**-0.5)
    sizes = [layer.index_size for layer in ModelShape.of(wrapper(LEARNS)).layers]
    assert sizes == [0, 32, 0, 0, 32] and ModelShape.of(wrapper(LEARNS)).states == 4


@pytest.mark.parametrize("config", [config_of(), wrapper(LEARNS)], ids=[FAMILY, LEARNS])
@pytest.mark.parametrize("change", [{"most": 2}, {"scale": -1.0}])
def test_a_proof_sees_an_index_that_chooses_otherwise(
    config: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_index, "PooledQuery", lambda *asked: replace(PooledQuery(*asked), **change))
    assert "gives other logits" in str(proof.fault(config))


def test_long_texts_are_those_of_transformers_in_every_way(tmp_path: Path) -> None:
    """Far beyond what a layer looks at: alone and side by side, read in pieces, after a prefix that is copied or on the disk."""
    model = publish(tmp_path / "single", LEARNS, torch.float32, max_position_embeddings=2048)
    greedy = SamplingParams(max_new_tokens=24, ignore_eos=True)
    with opened(tmp_path / "single", context=512) as llm:
        single = llm.generate(TEXT[:330], greedy)[0]
    assert single.token_ids == generated(model, TEXT[:330], 24) and single.stats.accepted > 0
    publish(tmp_path / "half", LEARNS, max_position_embeddings=2048)
    prompts = [TEXT, [*TEXT[:250], 7, 8, 9], TEXT[20:90]]
    kept: dict[str, Any] = {"prefix_cache": str(tmp_path / "kept")}
    texts, cached = [], []
    for options in ({"method": "none"}, {}, {"rows": 3}, kept, kept):
        with opened(tmp_path / "half", context=512, **options) as llm:
            llm.engine.max_nodes = 200
            done = [llm.generate(prompts, params) for params in (greedy, SAMPLED)]
        texts.append([[text.token_ids for text in each] for each in done])
        cached.append(done[0][0].stats.cached_tokens)
        assert options == {"method": "none"} or min(text.stats.accepted for each in done for text in each) > 0
        assert min(text.stats.bytes_streamed for each in done for text in each) > 0
    assert all(found == texts[0] for found in texts) and len({token for text in texts[0][1] for token in text}) > 8
    assert cached[-1] >= 384, "nothing was found on the disk: the test shows nothing"


def test_an_index_that_hides_the_tail_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hides the tokens behind the last whole block"):
        structure.skeleton(wrapper(LEARNS, index_kpool_always_select_tail=False), torch.float32, attention_name())


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
