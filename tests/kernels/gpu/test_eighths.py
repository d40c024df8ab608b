"""The GPU's decoder of weights that are published in FP8, here in Triton's interpreter, against the CPU's: every bit of each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from tests.kernels.test_eighths_coding import weights
from understudy.codecs import Encoded, codec
from understudy.kernels.eighths_coding import Factors
from understudy.kernels.pack import block, unblock
from understudy.quantizers import Tensors, quantizer

pytest.importorskip("triton")
import triton.language as tl

from understudy.kernels.gpu import eighths

fp8 = codec("fp8")


@pytest.fixture(autouse=True, params=[4])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many lanes share a column as on a GPU, unless a test asks for others."""
    monkeypatch.setattr(eighths, "LANES", tl.constexpr(request.param))
    return int(request.param)


def came_back(blocks: Tensor, factors: Factors | None, substitute: Tensors) -> Tensor:
    """What was encoded (1 byte says how), after checking that both decoders give it back, into memory full of NaNs."""
    data = fp8.encode(blocks, substitute, factors)
    expected = fp8.decode(Encoded(data, *blocks.shape[:2], torch.bfloat16, substitute))
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    codes, scales = substitute["codes"].to(DEVICE), substitute["scales"].to(DEVICE)
    found = eighths.decode(data.to(DEVICE), codes, scales, out)
    assert torch.equal(found.cpu().view(torch.int16), expected.view(torch.int16))
    assert torch.equal(expected.view(torch.int16), blocks.view(torch.int16))
    return data


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("spec", ["int4:group=32", "int4", "int4:group=128", "int3:group=16", "int2", "int6", "int8"])
def test_ordinary_weights(spec: str, alike: bool) -> None:
    blocks, factors = weights(130, 256, 128, alike=alike)
    data = came_back(blocks, factors, quantizer(spec).quantize(unblock(blocks, 130)))
    kind, _, stream, exceptions, groups, rows, sharing = data[:56].view(torch.int64).tolist()
    assert kind == 2 and stream > 0 and (groups, rows, sharing) == (2, 1 if alike else 64, 128)
    assert exceptions > 0 or spec in ("int4:group=32", "int6", "int8")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99), st.sampled_from([(64, 32), (70, 64), (3, 96), (130, 576)]), st.sampled_from([8, 12, 96, 128, 1 << 20]),
    st.booleans(), st.sampled_from(["int2", "int3:group=16", "int4:group=32", "int4", "int6", "int8"]),
    st.sampled_from(["any", "e4m3", "int4"]), st.sampled_from([0, 1, 40]),
)  # fmt: skip
def test_any_weight_with_any_factors(
    seed: int, shape: tuple[int, int], wide: int, alike: bool, spec: str, kind: str, odd: int
) -> None:
    """`odd`: how many weights are any 16 bits at all. Where tiles would be too small, weights are kept as they are."""
    blocks, factors = weights(*shape, min(wide, shape[1]), alike=alike, seed=seed, kind=kind)
    substitute = quantizer(spec).quantize(unblock(blocks, shape[0]))
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, blocks.numel(), (odd,), generator=generator)
    words = torch.randint(-(2**15), 2**15, (odd,), generator=generator, dtype=torch.int16)
    blocks.view(torch.int16).view(-1)[places] = words
    came_back(blocks, factors, substitute)


def test_zeros_subnormal_codes_and_signs() -> None:
    """All codes of e4m3 that are numbers, zeros of both signs and subnormal ones among them, in the order of their bits."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 127 != 127].repeat(64 * 64 // 254 + 1)[: 64 * 64].view(64, 64)
    for factor in (1.0, 2.0**-70, 1e-3, 3.3e-5):
        made = (codes.view(torch.float8_e4m3fn).float() * factor).bfloat16()
        for spec in ("int4", "int6", "int8"):
            data = came_back(block(made), Factors.of_rows(torch.full((64, 1), factor), 64), quantizer(spec).quantize(made))
            assert data[0] == 2
    zeros = torch.zeros(70, 64).bfloat16()
    zeros[::2] *= -1
    came_back(block(zeros), Factors.of_rows(torch.zeros(70, 1), 64), quantizer("int4").quantize(zeros))


@pytest.mark.parametrize("lanes", [8], indirect=True)
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_an_octet_a_lane(spec: str, lanes: int) -> None:
    blocks, factors = weights(64, 64, 32, alike=False)
    assert came_back(blocks, factors, quantizer(spec).quantize(unblock(blocks, 64)))[0] == 2


def test_what_was_not_packed_is_copied() -> None:
    words = torch.randint(-(2**15), 2**15, (2, 64, 64), dtype=torch.int16, generator=torch.Generator().manual_seed(1))
    substitute = quantizer("int4").quantize(torch.randn(128, 64).bfloat16())
    assert came_back(words.view(torch.bfloat16), None, substitute)[0] == 0


def test_parts_that_lie_apart_are_decoded_in_one_launch() -> None:
    """Packed parts of different sizes and one that was kept as it is, with other bytes between them, and views of a copy."""
    blocks, factors = weights(384, 128, 64, alike=False)
    blocks[2] = torch.randint(-(2**15), 2**15, (128, 64), dtype=torch.int16).view(torch.bfloat16)
    maker = quantizer("int4")
    whole = maker.quantize(torch.where(unblock(blocks, 384).abs() < 4, unblock(blocks, 384), 0))
    counts, starts, data, first = [2, 1, 3], [], torch.empty(0, dtype=torch.uint8), 0
    for count in counts:
        data = torch.cat([data, torch.full((192,), 0xFF, dtype=torch.uint8)])
        starts.append(len(data))
        own = Factors(factors.values[first : first + count], factors.columns)
        data = torch.cat([data, fp8.encode(blocks[first : first + count], maker.cut(whole, first, count), own)])
        first += count
    assert [int(data[start]) for start in starts] == [2, 0, 2]
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    substitute = {name: tensor.to(DEVICE) for name, tensor in whole.items()}
    places = fp8.places(starts, counts, DEVICE)
    found = fp8.decode_on_device(Encoded(data.to(DEVICE), 6, 128, torch.bfloat16, substitute, places), out)
    assert torch.equal(found.cpu().view(torch.int16), blocks.view(torch.int16))
