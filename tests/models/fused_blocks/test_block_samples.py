"""What stock blocks were given and gave is kept as it was, with what lies between their halves."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy.kernels.attention import AttentionSpec
from understudy.kernels.head_form import Made
from understudy.models.fused_blocks.block_samples import BlockSamples
from understudy.models.fused_blocks.block_structure import AttentionModules, BlockModules

TURNS = (torch.ones(1, 2, 4), torch.zeros(1, 2, 4))


class Block(nn.Module):
    """x + 1, then twice that."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, position_embeddings: Any = None) -> Tensor:
        x = x + 1
        return x + self.mlp(self.norm(x))

    @property
    def parts(self) -> BlockModules:
        attention = AttentionModules((), Made.ALL, (None, None, None), nn.Identity(), 3)
        return BlockModules(attention, self.mlp, (None, None, self.norm, None), 1.0)


def test_both_halves_are_kept_as_they_were() -> None:
    block, x = Block(), torch.ones(1, 2, 3)
    with BlockSamples({block: block.parts}, [block.mlp]) as watched:
        watched.specs[3] = AttentionSpec(0.5)
        gave = block(x, position_embeddings=TURNS)
        gave.zero_()
    block(x, position_embeddings=TURNS)
    ((found, sample),) = watched.samples
    assert found is block and sample.layer == 3 and sample.spec.scaling == 0.5 and sample.turns is TURNS
    assert (sample.given == 1).all() and (sample.middle == 2).all() and (sample.gave == 4).all()
    assert sample.second.given is sample.middle and sample.second.gave is sample.gave
    mlp = watched.mlp_samples[block.mlp]
    assert (mlp.given == 2).all() and (mlp.gave == 2).all()


def test_a_block_without_turns_has_no_sample_and_one_that_did_not_attend_no_specification() -> None:
    block, x = Block(), torch.ones(1, 2, 3)
    with BlockSamples({block: block.parts}) as watched:
        block(x)
        assert watched.samples == []
        block(x, position_embeddings=TURNS)
        ((_, sample),) = watched.samples
        assert sample.spec is None and watched.handed_on == set()


def test_blocks_are_handed_on_what_was_given_if_nobody_changed_it() -> None:
    first, second, third = (Block() for _ in range(3))
    with BlockSamples({block: block.parts for block in (first, second, third)}) as watched:
        x = second(first(torch.ones(1, 2, 3), position_embeddings=TURNS), position_embeddings=TURNS)
        x *= 2
        third(x, position_embeddings=TURNS)
    assert watched.handed_on == {(first, second)}


def test_blocks_are_told_that_they_stand_further_on() -> None:
    class Told(Block):
        def forward(self, x: Tensor, position_embeddings: Any = None, position_ids: Any = None) -> Tensor:
            return super().forward(x) + (0 if position_ids is None else position_ids[..., None])

    block, x, positions = Told(), torch.zeros(1, 2, 3), torch.tensor([[4, 5]])
    with BlockSamples({block: block.parts}, further=100):
        moved = block(x, position_embeddings=TURNS, position_ids=positions)
        assert torch.equal(block(x, position_embeddings=TURNS), block(x))
    assert torch.equal(moved, block(x, position_ids=positions) + 100)
