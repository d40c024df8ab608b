"""Two rows in one word: each helper against plain arithmetic on the halves, in the interpreter or on the GPU."""

from typing import Any

import pytest
import torch

from tests.device import DEVICE

pytest.importorskip("triton")
import triton
import triton.language as tl

from understudy.kernels.gpu import halves

COUNT = 1024


@triton.jit
def _all(first, second, out, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    spot = tl.arange(0, COUNT)
    a, b = tl.load(first + spot).to(tl.uint32, bitcast=True), tl.load(second + spot).to(tl.uint32, bitcast=True)
    tl.store(out + spot, halves.spread(a).to(tl.int32, bitcast=True))
    tl.store(out + COUNT + spot, halves.interleave(a, b).to(tl.int32, bitcast=True))
    tl.store(out + 2 * COUNT + spot, halves.low_halves(a, b).to(tl.int32, bitcast=True))
    tl.store(out + 3 * COUNT + spot, halves.high_halves(a, b).to(tl.int32, bitcast=True))
    tl.store(out + 4 * COUNT + spot, halves.choose(a, b, ~b).to(tl.int32, bitcast=True))
    four = tl.reshape(halves.in_order(a, a + 1, a + 2, a + 3), [4 * COUNT])
    tl.store(out + 5 * COUNT + tl.arange(0, 4 * COUNT), four.to(tl.int32, bitcast=True))


def _wanted(a: int, b: int) -> list[int]:
    low, high = a >> 15 & 1, a >> 31
    mixed = 255 * (low + ((b >> 15 & 1) << 8) + (high << 16) + ((b >> 31) << 24))
    below, above = a % 65536 + (b % 65536 << 16), (a >> 16) + (b >> 16 << 16)
    return [65535 * (low + (high << 16)), mixed, below, above, a & b | ~a & ~b & 0xFFFFFFFF]


def _words(tensor: Any) -> list[int]:
    return [word & 0xFFFFFFFF for word in tensor.tolist()]


def test_halves() -> None:
    torch.manual_seed(0)
    first, second = torch.randint(-(2**31), 2**31, (2, COUNT)).to(torch.int32)
    out = torch.zeros(9, COUNT, dtype=torch.int32, device=DEVICE)
    _all[(1,)](first.to(DEVICE), second.to(DEVICE), out, COUNT=COUNT)
    found, pairs = out.cpu(), list(zip(_words(first), _words(second), strict=True))
    for n, row in enumerate(found[:5]):
        assert _words(row) == [_wanted(a, b)[n] for a, b in pairs]
    assert torch.equal(found[5:].view(COUNT, 4), first[:, None] + torch.arange(4, dtype=torch.int32))
