"""A seed gives the same text for ever: the noise is what it always was."""

import pytest
import torch

from understudy.kernels.likeliest import likeliest
from understudy.sampling import noise, offset

# Of two places and three tokens.
GOLDEN = [
    [-0.7645741701126099, 1.6873023509979248, 0.9903934597969055],
    [-0.6040171384811401, 1.3020918369293213, 1.4093722105026245],
]


def test_the_noise_of_a_seed_is_what_it_always_was() -> None:
    keys = torch.tensor([0, 7]) + offset(3)
    assert noise(keys, 3).flatten().tolist() == pytest.approx(GOLDEN[0] + GOLDEN[1], rel=1e-6)
    values, tokens = likeliest(torch.zeros(2, 3), keys, 3)
    for row, best, found in zip(GOLDEN, values.tolist(), tokens.tolist(), strict=True):
        assert best == pytest.approx(sorted(row, reverse=True), rel=1e-6)
        assert best == pytest.approx([row[token] for token in found], rel=1e-6)
