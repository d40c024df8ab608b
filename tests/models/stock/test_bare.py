"""What is built bare holds no memory for matrices, and computes with all else."""

import torch
from torch import nn

from understudy.models.stock.bare import stacks_on_meta, weights_on_meta


def test_weights_of_all_experts_take_no_memory_while_a_model_is_built() -> None:
    with stacks_on_meta():
        large, small = nn.Parameter(torch.empty(4096, 4096, 4096)), torch.zeros(1, 4096, 8)
        made = torch.randn((8, 64, 64)), torch.ones(3, 4)
    assert large.is_meta and made[0].is_meta and not made[1].is_meta and not small.is_meta
    assert not torch.empty(2, 3, 4).is_meta


def test_linears_and_tables_hold_none_either_and_others_do() -> None:
    before = nn.Linear.__init__, nn.Embedding.reset_parameters
    with weights_on_meta():
        bare = nn.Linear(4096, 1 << 20), nn.Embedding(1 << 20, 4096, padding_idx=3), nn.LayerNorm(8)
    assert bare[0].weight.is_meta and bare[1].weight.is_meta and bare[1].padding_idx is None
    assert torch.equal(bare[2].weight, torch.ones(8)) and not nn.Linear(2, 2).weight.is_meta
    assert before == (nn.Linear.__init__, nn.Embedding.reset_parameters)
