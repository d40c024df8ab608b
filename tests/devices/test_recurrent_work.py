"""What runs recurrent layers on a device: the project's kernels where they serve a layer, else torch."""

from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.fake_device import FakeDevice
from understudy.kernels.recurrence import RuleStep
from understudy.recurrent import RecurrentShape, RecurrentState, Room
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
SERVED = RecurrentShape(3, 2, 1, 1, 4, 4)
RATED = RecurrentShape(3, 2, 1, 1, 4, 1, by_channel=True, rated=True)


@pytest.mark.parametrize(
    ("shape", "triton", "walks"), [(SERVED, True, True), (SERVED, False, False), (RATED, False, False)]
)
def test_kernels_run_what_they_serve_and_torch_the_rest(shape: RecurrentShape, triton: bool, walks: bool) -> None:
    device = FakeDevice(triton=triton)
    assert device.walks(shape) == walks
    state = RecurrentState(shape, Room(1, 4, torch.float32), device.fold)
    nodes = Nodes.of(TokenTree.chain([0] * 2), 0, 0)
    launched: list[str] = []

    def noted(name: str) -> Any:
        return patch(f"understudy.kernels.gpu.{name}", lambda *_, **__: launched.append(name))

    with noted("rule.recur"), noted("rule.fold"), noted("convolution.convolve"):
        x, weight = torch.randn(2, 3), torch.randn(3, 2)
        device.convolve(x, weight, None, state, nodes)
        key = torch.randn(2, 1, 4)
        if not shape.by_channel:
            device.recur(RuleStep(key, key, key, torch.rand(2, 1)), state, nodes, together=False)
        device.fold(state, 0, 0)
    assert launched == (["convolution.convolve", "rule.recur", "rule.fold"] if walks else [])
