"""The second moments of inputs, in a diagonal and a few directions."""

import torch

from understudy.quantizers.inputs import DIRECTIONS, Inputs


def _inputs(rank: int, columns: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(rank, columns, generator=generator)
    return torch.randn(300, rank, generator=generator) @ mixed + 0.1 * torch.randn(300, columns, generator=generator)


def test_what_goes_together_is_kept() -> None:
    x = _inputs(DIRECTIONS // 2)
    moments = Inputs.of(x)
    assert moments is not None and moments.directions.shape == (96, DIRECTIONS)
    exact = x.T @ x / len(x)
    exact /= exact.diagonal().mean()
    found = torch.diag(moments.own) + moments.directions @ moments.directions.T
    assert (found - exact).norm() < 0.01 * exact.norm()
    assert torch.allclose(moments.squares, exact.diagonal(), rtol=0.02)


def test_the_same_twice_and_whatever_their_size() -> None:
    x = _inputs(40)
    one, same, large = Inputs.of(x), Inputs.of(x), Inputs.of(x * 2.0**40)
    assert one is not None and same is not None and large is not None
    for other in (same, large):
        assert torch.equal(one.own, other.own) and torch.equal(one.directions, other.directions)


def test_fewer_inputs_than_directions_and_none_that_say_anything() -> None:
    few = Inputs.of(_inputs(40)[:3])
    assert few is not None and few.directions.shape == (96, 3) and (few.own > 0).all()
    assert Inputs.of(torch.zeros(4, 64)) is None
    assert Inputs.of(torch.full((4, 64), float("nan"))) is None
    assert Inputs.of(torch.full((4, 64), float("inf"))) is None
