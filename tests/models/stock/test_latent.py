"""The KV cache keeps latent states in the place of keys and values: texts are the same, and a token takes a few of its bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.devices.processor import Processor
from understudy.errors import CheckpointError
from understudy.kernels.head_products import HeadProduct
from understudy.layer_states import FullState
from understudy.models.stock.latent import HEADS, LatentHeads, attend_over_states
from understudy.models.stock.shape import ModelShape, keeps_states

FAMILIES = [
    *("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "longcat_flash"),
    *("kimi_linear", "bailing_hybrid", "deepseek_v32"),
]
PROMPT = [(place * place + place // 3) % 90 + 1 for place in range(70)]


@torch.inference_mode()
def test_heads_over_states_give_what_heads_over_keys_and_values_give() -> None:
    torch.manual_seed(0)
    heads, plain, turned, value, rank, tokens = 3, 16, 8, 12, 40, 30
    weight, states = torch.randn(heads * (plain + value), rank), torch.randn(tokens, rank)
    query, further = torch.randn(tokens, heads, plain + turned), torch.randn(tokens, turned)
    ours = LatentHeads.of(weight, plain, value, HeadProduct)
    wide = (states @ weight.T).view(tokens, heads, plain + value)
    keys = torch.cat((wide[..., :plain], further[:, None].expand(-1, heads, -1)), -1)
    scores = torch.einsum("nhc,mhc->hnm", query, keys).softmax(-1)
    wanted = torch.einsum("hnm,mhv->nhv", scores, wide[..., plain:])
    asked = ours.ask(query)
    assert asked.shape == (tokens, heads, rank + turned) and ours.rank == rank
    found = torch.einsum("nhc,mc->hnm", asked, torch.cat((states, further), -1)).softmax(-1)
    given = torch.einsum("hnm,mr->nhr", found, states)
    assert torch.allclose(ours.widened(given), wanted, atol=1e-4)


def test_stock_attention_hands_on_states() -> None:
    model = stock("minicpm3")
    attention: Any = model.model.layers[1].self_attn
    asked: list[str] = []

    def weight_of(path: str) -> torch.Tensor:
        asked.append(path)
        weight: torch.Tensor = model.get_parameter(f"{path}.weight").data
        return weight

    attend_over_states(model, weight_of, HeadProduct)
    assert asked == [f"model.layers.{layer}.self_attn.kv_b_proj" for layer in range(len(model.model.layers))]
    states, turned = torch.randn(1, 1, 5, 40), torch.randn(1, 1, 5, 8)
    key, value = attention.expand_kv(states, turned)
    assert torch.equal(key, torch.cat((states, turned), -1)) and torch.equal(value, states)
    assert getattr(attention, HEADS).rank == 40


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_states(family: str) -> None:
    config = stock(family).config
    wide, kept = (ModelShape.of(config, latent=latent) for latent in (False, True))
    assert kept.latent and not wide.latent
    attending = [(one, other) for one, other in zip(wide.layers, kept.layers, strict=True) if one.kv_heads]
    assert attending
    for one, other in attending:
        turned = other.key_size - other.value_size
        assert (other.kv_heads, other.value_size, other.latent) == (1, config.kv_lora_rank, True)
        assert turned == config.qk_rope_head_dim and one.key_size == config.qk_nope_head_dim + turned
        assert other.token_bytes(2) == 2 * other.key_size + 2 * other.index_size < one.token_bytes(2)


def test_layers_without_a_rope_keep_the_state_alone() -> None:
    config = stock("minicpm3").config
    config.no_rope_layers = [1, 0, 1]
    assert [layer.key_size for layer in ModelShape.of(config, latent=True).layers] == [48, 40, 48]


def test_eight_bits_of_a_state_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "minicpm3", torch.bfloat16)
    with pytest.raises(CheckpointError, match="keeps a latent state in the place of keys and values, and that has no 8 bits"):
        LLM(tmp_path, memory="1GiB", context=128, kv_bits=8)
    assert ModelShape.of(stock("minicpm3").config, small=True).layers[0].small, "keys and values may have them"


def test_only_a_single_device_that_can_attends_over_states() -> None:
    one = Processor(threads=1)
    assert keeps_states([one]) and not keeps_states([one, one])
    one.attends_over_states = False  # type: ignore[misc]
    assert not keeps_states([one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_keys_and_values(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = save(tmp_path, family, dtype)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, method=method, memory="1GiB", context=256, resident="none") as llm:
            made, = llm.generate([PROMPT], SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0))
            texts.append(list(made.token_ids))
            layers = [state for state in llm.model.cache.layers if state.shape.kv_heads]
            assert layers and all(isinstance(state, FullState) and state.keys.shape[1] == 1 for state in layers)
            assert all(state.values.data_ptr() == state.keys.data_ptr() for state in layers), "states are there twice"
            names = [spec.module for spec in llm.model.store.layout.linears]
            widening = {index for index, name in enumerate(names) if name.endswith("kv_b_proj")}
            assert widening and widening == llm.model.weights.taken and widening <= llm.plan.whole
            assert not any(llm.model.weights.substitutes[index] for index in widening)
            assert made.stats.bytes_streamed > 0 and (method == "none" or made.stats.accepted > 0)
    assert texts[0] == texts[1]
    if dtype == torch.float32:
        with torch.no_grad():
            wanted = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert texts[0] == wanted[0, len(PROMPT) :].tolist()


def test_texts_that_spill_and_rows_that_are_padded_are_the_same(tmp_path: Path) -> None:
    save(tmp_path, "youtu", torch.bfloat16, kv_lora_rank=64, qk_rope_head_dim=16, q_lora_rank=None, max_position_embeddings=4096)
    prompts = [(PROMPT * 20)[:1100], PROMPT[:9]]
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0)

    def texts(**options: Any) -> list[list[int]]:
        with LLM(tmp_path, memory="1GiB", context=1536, rows=2, resident="none", **options) as llm:
            if "spill" in options:
                assert llm.plan.spilled_bytes > 0
            return [list(one.token_ids) for one in llm.generate(prompts, params)]

    plain = texts()
    assert texts(spill=64) == plain and texts(policy="eqspec") == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_widens_states_may_be_too_small_to_stream(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of one small head it has fewer outputs than a block: it lies beside norms, in no Linear of the Store."""
    sizes = {"kv_lora_rank": 256, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    model, params = save(tmp_path, "deepseek_v3", dtype, **sizes), SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=0)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, method=method, memory="1GiB", context=256, resident="none") as llm:
            made, = llm.generate([PROMPT], params)
            assert not llm.model.weights.taken and made.stats.bytes_streamed > 0
            assert method == "none" or made.stats.accepted > 0
        texts.append(list(made.token_ids))
    assert texts[0] == texts[1]
    assert dtype != torch.float32 or texts[0] == generated(model, PROMPT, 16)
