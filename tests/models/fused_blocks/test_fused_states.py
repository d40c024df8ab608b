"""Attention over latent states in fewer steps: what the stock modules give, with the same kept in the cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.fused_blocks.test_fused import TEXT, stock
from tests.models.fused_blocks.test_fused_latent import EVEN
from tests.tiny import save
from understudy import LLM
from understudy.models.fused_blocks.fused_states import FusedStates
from understudy.models.fused_blocks.fusing import FusedParts
from understudy.tree import Nodes, TokenTree


def parts_of(llm: LLM) -> list[FusedStates]:
    """The attention of each fused block."""
    blocks = (module for module in llm.model.module.modules() if "forward" in vars(module))
    made = (cell.cell_contents for block in blocks for cell in block.forward.__closure__ or ())
    return [one.attention for one in made if isinstance(getattr(one, "attention", None), FusedStates)]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("youtu", {"q_lora_rank": None}),
        ("youtu", {"q_lora_rank": 64, "num_attention_heads": 16, "num_key_value_heads": 16}),
        # turned by complex numbers
        ("deepseek_v2", {"q_lora_rank": None, "first_k_dense_replace": 3}),
        ("deepseek_v3", {"q_lora_rank": 64, "first_k_dense_replace": 3}),
        ("glm4_moe_lite", {"q_lora_rank": 64, "mlp_layer_types": ["dense"] * 3}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_blocks_draft_the_same_in_fewer_steps(family: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path, family, dtype, **EVEN, **options)
    with LLM(tmp_path, memory="1GiB", context=128, rows=2) as llm:
        model = llm.model
        assert model.fused == FusedParts(3)
        ours = parts_of(llm)
        assert len(ours) == 3 and {one.form.rank for one in ours} == {model.config.kv_lora_rank}
        nodes = Nodes.join([Nodes.of(TokenTree.chain(TEXT), 0, 0), Nodes.of(TokenTree.of(TEXT[:5], [-1, 0, 0, 1, 1]), 1, 0)])
        drafted = model.draft(nodes)
        kept = [state.keys.clone() for state in model.cache.layers]
        stock(model)
        wanted = model.draft(nodes)
        for state, keys in zip(model.cache.layers, kept, strict=True):
            assert (state.keys - keys).norm() < 0.1 * keys.norm()
    assert (drafted - wanted).norm() < 0.1 * wanted.norm() and not torch.equal(drafted, wanted)


def test_what_does_not_go_together_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path, "youtu", torch.bfloat16, num_hidden_layers=1, q_lora_rank=64, **EVEN)
    with LLM(tmp_path, memory="1GiB", context=128) as llm:
        ours, = parts_of(llm)
        state: Any = llm.model.cache.layers[0]
        sample: Any = type("Turned", (), {"turns": (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))})
        assert ours.fits(state, sample)
        other: Any = type("Other", (), {"columns": 63, "outputs": ours.queries.outputs if ours.queries else 0})
        assert not replace(ours, output=other).fits(state, sample)
        assert not replace(ours, queries=other).fits(state, sample)
        sample.turns = torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)
        assert not ours.fits(state, sample)
