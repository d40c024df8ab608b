"""The model grows without changing what it computes, its 4-bit copy is what the card says, and the packaged one is whole."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from understudy.demo import PROMPT, path
from understudy.demo.corpus import is_held_out
from understudy.demo.measure import GROUP, replace_linears, rounded, sample
from understudy.demo.shape import STAGES, configuration, deepen
from understudy.demo.train import rate


@pytest.fixture(scope="module")
def packaged() -> nn.Module:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(path(), dtype=torch.float32).eval()


def test_growing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(configuration()).eval()
    tokens = torch.randint(4096, (1, 12))
    with torch.no_grad():
        before = model(tokens).logits
        deepen(model, 8)
        for block in model.model.layers:
            block._compiled_call_impl = None  # the compiler is not what is tested
        after = model(tokens).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert [block.self_attn.layer_idx for block in model.model.layers] == list(range(8))
    assert model.config.num_hidden_layers == 8


def test_rate_warms_up_stays_and_falls() -> None:
    assert rate(0.0) == 0.0
    assert rate(0.02) == rate(0.4) == 1.0
    assert 0.4 < rate(0.75) < 0.5
    assert rate(1.0) == rate(1.2) == 0.01


def test_stages_end_at_full_depth() -> None:
    assert [stage.start for stage in STAGES] == sorted(stage.start for stage in STAGES)
    assert STAGES[-1].layers == 16


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_of_evenly_spaced_values(bits: int) -> None:
    weight = torch.randn(6, 3 * GROUP, generator=torch.Generator().manual_seed(0))
    groups, back = weight.view(6, 3, GROUP), rounded(weight, bits).view(6, 3, GROUP)
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    assert ((groups - back).abs() <= step[..., None] / 2 + 1e-6).all()
    assert max(len(group.unique()) for group in back.flatten(0, 1)) <= 2**bits


def test_a_tied_head_is_changed_without_the_embedding() -> None:
    model = LlamaForCausalLM(configuration())
    replace_linears(model, torch.zeros_like)
    assert not model.lm_head.weight.any()
    assert model.model.embed_tokens.weight.any()


def test_packaged_model_is_a_small_directory_of_the_usual_kind(packaged: nn.Module) -> None:
    assert sum(weight.numel() for weight in packaged.parameters()) == 9_183_488
    assert sum(file.stat().st_size for file in path().iterdir()) <= 20_000_000
    assert packaged.config.num_hidden_layers == 16
    assert packaged.config.tie_word_embeddings
    facts = json.loads((path() / "training.json").read_text())
    assert all(is_held_out(name) for name in facts["held_out_files"])


def test_packaged_model_writes_python(packaged: nn.Module) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path())
    text = sample(packaged, tokenizer, PROMPT, 48)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert len({*lines}) > len(lines) / 2
    assert any(line.startswith(("return", "def ", "self.", '"""')) for line in lines)
    assert (path() / "CARD.md").read_text().startswith("# The demo model")
