"""Attention of classes that compute it by themselves: handed on with windows, scales and biases by position."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import generated, opened, save, stock
from understudy import SamplingParams
from understudy.errors import CheckpointError
from understudy.models.proving import proof
from understudy.models.stock import own_attention, structure
from understudy.models.stock.own_attention import BIASED, biased, install_own_attention
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name
from understudy.weights.export import export

LONG = [(i * i * 7 + i // 3) % 251 for i in range(700)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_grow_by_the_slope_of_a_head_for_each_position(dtype: torch.dtype) -> None:
    """Also where no bfloat16 tells a position, or a slope: 0.7071 times 1,999 and 2,000 differ by 0.7071."""
    query, key = torch.zeros(1, 3, 5, 4, dtype=dtype), torch.zeros(1, 3, 5, 4, dtype=dtype)
    positions = torch.tensor([0, 255, 256, 1999, 2000])
    slopes = torch.tensor([0.5, 2**-0.5, 2**-8])
    query, key = biased(query, key, slopes, 0.25, SimpleNamespace(positions=positions[None]))
    assert query.shape == key.shape == (1, 3, 5, 4 + BIASED) and query.dtype == key.dtype == dtype
    scores = 0.25 * (query.double() @ key.double().transpose(2, 3))[0]
    wanted = slopes.double()[:, None, None] * positions.double()
    assert torch.allclose(scores, wanted.expand(3, 5, 5), rtol=1e-6, atol=0)
    assert torch.equal(biased(query, key, slopes, 1.0, None)[1][0, 0, :, -BIASED], torch.zeros(5, dtype=dtype))


def test_what_computes_by_itself_is_told_from_what_does_not() -> None:
    for family in ("llama", "opt", "gpt2"):
        assert not install_own_attention(stock(family), attention_name())
    model = structure.skeleton(stock("gpt_neo").config, torch.float32, attention_name())
    assert not any(name.endswith("attention.bias") for name, _ in model.named_buffers()), "masks of all positions take memory"
    kept = [(layer.kv_heads, layer.key_size, layer.value_size) for name in ("bloom", "falcon", "falcon-multi")
            for layer in ModelShape.of(stock(name).config).layers[:1]]  # fmt: skip
    assert kept == [(4, 16 + BIASED, 16), (2, 16, 16), (1, 16, 16)]


@pytest.mark.parametrize("family", ["bloom", "mpt", "gpt_neo", "falcon-multi"])
def test_long_texts_side_by_side(family: str, tmp_path: Path) -> None:
    """Longer than a window, and than whole numbers of eight bits."""
    changes = {"mpt": {"max_seq_len": 1024}, "bloom": {}}.get(family, {"max_position_embeddings": 1024})
    model = save(tmp_path / "model", family, **changes)
    prompts = [LONG, LONG[:300], LONG[:33]]
    with opened(tmp_path / "model", context=1024, rows=3) as llm:
        found = llm.generate(prompts, SamplingParams(max_new_tokens=16, ignore_eos=True))
    for prompt, done in zip(prompts, found, strict=True):
        assert done.token_ids == generated(model, prompt, 16) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0


def test_masks_that_old_checkpoints_hold_are_left_aside(tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = save(source, "gptj")
    tensors = load_file(source / "model.safetensors")
    for layer in range(3):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with opened(source) as llm:
        done, store = llm.generate(LONG[:20], SamplingParams(max_new_tokens=16, ignore_eos=True))[0], llm.store
    assert done.token_ids == generated(model, LONG[:20], 16) and done.stats.accepted > 0
    export(store, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_what_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falcon looks implementations of attention up in a table of its own."""
    monkeypatch.setattr(own_attention, "FORWARDS", {})
    with pytest.raises(CheckpointError, match="no way to replace the attention of a 'falcon' model"):
        structure.skeleton(stock("falcon").config, torch.float32, attention_name())


def test_what_is_not_computed_exactly_is_refused() -> None:
    why = proof.fault(stock("falcon", alibi=True, new_decoder_architecture=False).config)
    assert why is not None and "a bias by position (alibi) that is rounded to 8 bits" in why
    with pytest.raises(CheckpointError, match="cannot have 8 bits: they hold positions"):
        ModelShape.of(stock("bloom").config, small=True)
