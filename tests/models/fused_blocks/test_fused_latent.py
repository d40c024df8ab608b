"""Queries, keys and values of a latent state in fewer steps: what the stock modules make, in the same order."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.models.fused_blocks.test_fused import drafted_on_a_device
from tests.tiny import save
from understudy.kernels.blocks import JoinedProduct
from understudy.models.fused_blocks.block_structure import latent_modules
from understudy.models.fused_blocks.fused_latent import LatentProduct

HEADS, KEPT, TURNED, VALUE, LATENT, NARROW = 3, 5, 2, 4, 7, 6
EVEN = {"kv_lora_rank": 64, "v_head_dim": 16, "tie_word_embeddings": False}


class Times:
    """A product with a weight of whole numbers."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.columns, self.outputs = columns, outputs
        self.weight = torch.randint(-3, 4, (outputs, columns)).float()

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        assert x.is_contiguous() and x.shape[1] == self.columns
        return x @ self.weight.T


@pytest.mark.parametrize("narrow", [False, True])
def test_it_is_queries_then_keys_then_values(narrow: bool) -> None:
    torch.manual_seed(0)
    size = HEADS * (KEPT + TURNED)
    given = NARROW if narrow else size
    first, widened = Times(8, given + LATENT + TURNED), Times(LATENT, HEADS * (KEPT + VALUE))
    queries = Times(NARROW, size) if narrow else None
    ours = LatentProduct(cast(JoinedProduct, first), queries, widened, HEADS, TURNED, VALUE)
    assert ours.fits and ours.columns == 8
    x = torch.randint(-3, 4, (4, 8)).float()
    made = ours(x)
    assert made.shape == (4, ours.outputs) and ours.outputs == 2 * size + HEADS * VALUE
    begun, latent, shared = first(x).split([given, LATENT, TURNED], 1)
    wide = widened(latent.contiguous()).view(4, HEADS, -1)
    assert torch.equal(made[:, :size], queries(begun.contiguous()) if queries else begun)
    keys = made[:, size : 2 * size].view(4, HEADS, -1)
    assert torch.equal(keys[..., :KEPT], wide[..., :KEPT]) and torch.equal(keys[..., KEPT:], shared[:, None].expand(-1, HEADS, -1))
    assert torch.equal(made[:, 2 * size :].view(4, HEADS, -1), wide[..., KEPT:])


def test_sizes_that_do_not_go_together_are_found() -> None:
    first, queries, widened = Times(8, NARROW + LATENT + TURNED), Times(NARROW, 21), Times(LATENT, 27)
    assert LatentProduct(first, queries, widened, 3, TURNED, VALUE).fits
    for heads, turned, value in ((2, TURNED, VALUE), (3, 3, VALUE), (3, TURNED, 5), (3, 7, VALUE), (3, 0, VALUE)):
        assert not LatentProduct(first, queries, widened, heads, turned, value).fits
    assert not LatentProduct(first, Times(NARROW + 1, 21), widened, 3, TURNED, VALUE).fits


@torch.inference_mode()
def test_on_a_device_they_draft_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "youtu", torch.bfloat16, num_hidden_layers=2, q_lora_rank=64, **EVEN)
    found = drafted_on_a_device(tmp_path, monkeypatch)
    # of each block: what comes of its input, queries, output, and the MLP; then the head
    assert found.count("multiply") == 2 * 5 + 1 and found.count("_attend_states") == found.count("_keep") == 2


def test_modules_of_other_sizes_or_names_are_none(tmp_path: Path) -> None:
    attention = save(tmp_path, "youtu", q_lora_rank=64).model.layers[0].self_attn
    found = latent_modules(attention)
    assert found is not None and found.queries is not None and found.linears == (attention.q_a_proj, attention.kv_a_proj_with_mqa)
    assert (found.heads, found.turned, found.value_size, found.layer) == (4, 8, 20, 0)
    attention.v_head_dim = None
    assert latent_modules(attention) is None and latent_modules(None) is None
    attention.v_head_dim = 20
    attention.q_proj = torch.nn.Linear(1, 1)
    assert latent_modules(attention) is None
