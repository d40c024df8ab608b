"""The GPU's decoder of weights in four bits, here in Triton's interpreter, against the CPU's: every bit of each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from tests.kernels.test_scaled_codes import weights
from understudy.codecs import Encoded, codec
from understudy.kernels.eighths_coding import Factors
from understudy.kernels.pack import block

pytest.importorskip("triton")

from understudy.kernels.gpu import scaled_fours

w4 = codec("w4")


def came_back(blocks: Tensor, factors: Factors | None) -> Tensor:
    """What was encoded (1 byte says how), after checking that both decoders give it back, into memory full of NaNs."""
    data = w4.encode(blocks, {}, factors)
    expected = w4.decode(Encoded(data, *blocks.shape[:2], blocks.dtype, {}))
    found = scaled_fours.decode(data.to(DEVICE), torch.full_like(blocks, torch.nan, device=DEVICE))
    assert torch.equal(found.cpu().view(torch.int16), expected.view(torch.int16))
    assert torch.equal(expected.view(torch.int16), blocks.view(torch.int16))
    return data


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(64, 32, 32), (70, 96, 32), (3, 128, 128), (130, 320, 64), (64, 384, 384), (64, 48, 24)]),
    st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from(["centre", "any"]),
)  # fmt: skip
def test_weights_of_any_kind(seed: int, sizes: tuple[int, int, int], dtype: torch.dtype, points: str) -> None:
    blocks, factors = weights(*sizes, dtype=dtype, points=points, seed=seed, spread=9 if dtype == torch.float16 else 60)
    assert came_back(blocks, factors)[0] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_in_float32(dtype: torch.dtype) -> None:
    scales = torch.rand(64, 2) / 3 + 0.1
    numbers = torch.randint(-8, 8, (64, 64)) * scales.repeat_interleave(32, 1)
    data = came_back(block(numbers.to(dtype)), Factors.of_rows(scales, 32))
    assert data[:40].view(torch.int64).tolist() == [1, 32, 2, 0, 0]


def test_weights_that_were_float16_before() -> None:
    scales = (torch.rand(64, 2) * 0.01 + 1e-5).half().float()
    numbers = torch.randint(-8, 8, (64, 64)) * scales.repeat_interleave(32, 1)
    data = came_back(block(numbers.half().bfloat16()), Factors.of_rows(scales, 32))
    assert data[:40].view(torch.int64).tolist() == [1, 32, 2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_kept_as_it_is(dtype: torch.dtype) -> None:
    words = torch.randint(-(2**15), 2**15, (2, 96, 64), dtype=torch.int16)
    assert came_back(words.view(dtype), None)[0] == 0


def test_several_parts_that_lie_apart_at_once() -> None:
    """Of unlike kinds, each where it happens to lie."""
    made = [weights(64 * count, 128, 64, points=points, seed=count) for count, points in ((1, "any"), (3, "centre"), (2, "any"))]
    parts = [w4.encode(blocks, {}, factors) for blocks, factors in made]
    plain = torch.randn(1, 128, 64).bfloat16()
    parts.append(w4.encode(plain, {}, None))
    starts, places = [], 0
    for part in parts:
        starts.append(places + 128)
        places += 128 + part.numel()
    data = torch.full((places,), 0xA5, dtype=torch.uint8)
    for start, part in zip(starts, parts, strict=True):
        data[start : start + part.numel()] = part
    expected = torch.cat([*(blocks for blocks, _ in made), plain])
    table = w4.places(starts, [1, 3, 2, 1], DEVICE)
    out = torch.full_like(expected, torch.nan, device=DEVICE)
    found = w4.decode_on_device(Encoded(data.to(DEVICE), 7, 128, torch.bfloat16, {}, table), out)
    assert found is out and torch.equal(found.cpu().view(torch.int16), expected.view(torch.int16))
