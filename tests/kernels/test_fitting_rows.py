"""The vector code of a fit does what its formulas say: compared with the same steps in float64."""

import pytest
import torch
from torch import Tensor

from understudy.kernels import fitting
from understudy.kernels.pack import block, unpack


class _Reference:
    """64 rows [64, K] in groups, fitted one group after another in float64."""

    def __init__(self, weight: Tensor, scales: Tensor, own: Tensor, directions: Tensor, bits: int) -> None:
        self.centre = 2 ** (bits - 1)
        self.weights = [part.double() for part in weight.chunk(len(scales), 1)]
        self.own = own.double().chunk(len(scales))
        self.directions = directions.double().chunk(len(scales))
        # (scale, zero) of each group: [64, 2]
        self.fits = [fit.double() for fit in scales]
        self.taken = 0

    def codes(self, g: int, fit: Tensor) -> Tensor:
        scale, zero = fit[:, :1], fit[:, 1:]
        steps = torch.where(scale > 0, (self.weights[g] - zero) / scale, 0.0)
        return steps.round().clamp(-self.centre, self.centre - 1)

    def wrong(self, g: int, fit: Tensor) -> Tensor:
        return self.codes(g, fit) * fit[:, :1] + fit[:, 1:] - self.weights[g]

    def others(self, g: int) -> Tensor:
        """V' e of all groups but this one: [64, r]."""
        found = [self.wrong(i, fit) @ self.directions[i] for i, fit in enumerate(self.fits) if i != g]
        return sum(found, torch.zeros(64, self.directions[g].shape[1], dtype=torch.float64))

    def error(self, g: int, fit: Tensor) -> Tensor:
        wrong = self.wrong(g, fit)
        return wrong.square() @ self.own[g] + (self.others(g) + wrong @ self.directions[g]).square().sum(1)

    def least(self, g: int) -> Tensor:
        """Scale and zero that make the error of these codes least: two unknowns, solved for each row."""
        codes, others = self.codes(g, self.fits[g]), self.others(g)
        root = self.own[g].sqrt()
        found = []
        for row in range(64):
            both = torch.stack((codes[row], torch.ones_like(codes[row])), 1)
            sides = torch.cat((root[:, None] * both, self.directions[g].T @ both))
            wanted = torch.cat((root * self.weights[g][row], self.directions[g].T @ self.weights[g][row] - others[row]))
            found.append(torch.linalg.lstsq(sides, wanted).solution)
        return torch.stack(found).bfloat16().double()

    def improve(self, g: int) -> None:
        new, old = self.least(g), self.fits[g]
        near = (new[:, 0] > 0.5 * old[:, 0]) & (new[:, 0] < 2 * old[:, 0])
        better = near & (self.error(g, new) < self.error(g, old))
        self.taken += int(better.sum())
        self.fits[g] = torch.where(better[:, None], new, old)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("rank", [0, 5, 16])
def test_a_fit_is_what_least_squares_say(bits: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn((64, 128), generator=generator) * 0.03
    own = torch.rand(128, generator=generator) + 0.05
    directions = torch.randn((128, rank), generator=generator) * 0.2
    scales = torch.empty((2, 64, 2), dtype=torch.bfloat16)
    for g, part in enumerate(weight.chunk(2, 1)):
        scales[g, :, 0] = (part.amax(1) - part.amin(1)) / (2**bits - 1)
        scales[g, :, 1] = (part.amax(1) + part.amin(1)) / 2
    sweeps = 2
    monkeypatch.setattr(fitting, "SWEEPS", sweeps)
    codes, found = fitting.fit(block(weight), scales, own, directions, bits)
    reference = _Reference(weight, scales, own, directions, bits)
    for _ in range(sweeps):
        for g in range(2):
            reference.improve(g)
    assert reference.taken > 64, "nothing became better"
    same = torch.stack([(found[g].double() == fit).all(1) for g, fit in enumerate(reference.fits)])
    # float32 rounds a few the other way
    assert same.double().mean() > 0.97
    coded = torch.cat([reference.codes(g, fit) for g, fit in enumerate(reference.fits)], 1) + reference.centre
    unpacked = unpack(codes, 64).view(64, 2, 64)
    assert torch.equal(unpacked.transpose(0, 1)[same], coded.view(64, 2, 64).transpose(0, 1)[same].to(unpacked.dtype))
