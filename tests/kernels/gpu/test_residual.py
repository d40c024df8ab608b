"""The GPU's decoder of residuals, here in Triton's interpreter, against the CPU's: every bit of every weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.codecs.test_delta import TENSORS, _words
from tests.device import DEVICE
from understudy.codecs import Encoded, codec
from understudy.codecs.delta import LARGEST
from understudy.kernels.pack import block
from understudy.quantizers import Tensors, quantizer

pytest.importorskip("triton")
import triton.language as tl

from understudy.kernels.gpu import residual

delta = codec("delta")
# those of float16 take one kernel more (`test_trailing`)
BRAINS = [name for name, weight in TENSORS.items() if weight.dtype == torch.bfloat16]


@pytest.fixture(autouse=True, params=[4])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many lanes share a column as on a GPU, unless a test asks for others."""
    monkeypatch.setattr(residual, "LANES", tl.constexpr(request.param))
    return int(request.param)


def came_back(blocks: Tensor, substitute: Tensors) -> Tensor:
    """What was encoded (1 byte says how), after checking that both decoders give it back, into memory full of NaNs."""
    data = delta.encode(blocks, substitute)
    expected = delta.decode(Encoded(data, *blocks.shape[:2], torch.bfloat16, substitute))
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    codes, scales = substitute["codes"].to(DEVICE), substitute["scales"].to(DEVICE)
    found = residual.decode(data.to(DEVICE), codes, scales, out)
    assert torch.equal(found.cpu().view(torch.int16), expected.view(torch.int16))
    assert torch.equal(expected.view(torch.int16), blocks.view(torch.int16))
    return data


@pytest.mark.parametrize("spec", ["int4:group=32", "int4", "int4:group=256", "int3:group=16", "int2", "int2:group=128", "int8"])
def test_ordinary_weights(spec: str) -> None:
    torch.manual_seed(0)
    columns = 256 if "256" in spec else 128
    weight = (torch.distributions.StudentT(3.0).sample((70, columns)) * 0.02).to(torch.bfloat16)
    weight[5, 7] = -0.0
    data = came_back(block(weight), quantizer(spec).quantize(weight))
    kind, _, stream, exceptions = data[:32].view(torch.int64).tolist()
    assert kind == 1 and stream > 0 and exceptions > 0


@pytest.mark.parametrize("name", BRAINS)
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_adversarial_weights(spec: str, name: str) -> None:
    weight = TENSORS[name]
    came_back(block(weight), quantizer(spec).quantize(weight))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(64, 32), (70, 64), (3, 96)]),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["int2", "int3", "int4", "int6", "int8"]),
)
def test_any_weight_with_any_substitute(seed: int, shape: tuple[int, int], odd: float, sane: bool, spec: str) -> None:
    """`odd`: the share of the weights that are any 16 bits at all; the scales need not be of this weight."""
    torch.manual_seed(seed)
    plain = torch.randn(shape).to(torch.bfloat16)
    weight = torch.where(torch.rand(shape) < odd / 8, _words(*shape, seed=seed), plain)
    substitute = quantizer(spec).quantize(plain)
    if not sane:
        scales = substitute["scales"]
        words = _words(*scales.shape, seed=seed + 1).nan_to_num(0.0, 1.0, -1.0).clamp(-1e30, 1e30)
        substitute = {**substitute, "scales": torch.where(torch.rand(scales.shape) < 0.3, words, scales)}
    came_back(block(weight), substitute)


@pytest.mark.parametrize("lanes", [8], indirect=True)
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_an_octet_a_lane(spec: str, lanes: int) -> None:
    torch.manual_seed(0)
    weight = (torch.distributions.StudentT(3.0).sample((64, 64)) * 0.02).to(torch.bfloat16)
    assert came_back(block(weight), quantizer(spec).quantize(weight))[0] == 1


def test_what_was_not_packed_is_copied() -> None:
    weight = _words(64, 64, seed=3)
    data = came_back(block(weight), quantizer("int4").quantize(torch.randn(64, 64)))
    assert data[0] == 0


def test_products_of_codes_and_scales_are_exact() -> None:
    """So adding to one gives the same bits whether it is fused or not: for all scales that are packed, and all codes."""
    scales = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    scales = scales[scales.abs() < LARGEST].float()
    for factor in (*range(256), *(2.0 ** (bits - 1) + half for bits in (2, 3, 4, 6, 8) for half in (-0.5, 0.5))):
        product = scales * factor
        assert torch.equal(product.double(), scales.double() * factor)
        assert not (product == 0).logical_and(scales != 0).any() or factor == 0


def test_slices_of_a_substitute() -> None:
    """A part is decoded with views of the whole weight's codes and scales."""
    maker = quantizer("int4")
    weight = torch.randn(256, 128).to(torch.bfloat16)
    whole = maker.quantize(weight)
    part = maker.cut({name: tensor.to(DEVICE) for name, tensor in whole.items()}, 1, 2)
    assert not part["scales"].is_contiguous()
    blocks = block(weight)[1:3]
    data = delta.encode(blocks, maker.cut(whole, 1, 2))
    found = residual.decode(data.to(DEVICE), part["codes"], part["scales"], torch.zeros_like(blocks, device=DEVICE))
    assert torch.equal(found.cpu().view(torch.int16), blocks.view(torch.int16))


def test_parts_that_lie_apart_are_decoded_in_one_launch() -> None:
    """Packed parts of different sizes and one that was kept as it is, with other bytes between them."""
    torch.manual_seed(1)
    weight = torch.randn(384, 128).to(torch.bfloat16)
    weight[128:192] = _words(64, 128, seed=3)
    maker, blocks = quantizer("int4"), block(weight)
    whole = maker.quantize(torch.where(weight.abs() < 4, weight, 0))
    counts, starts, data, first = [2, 1, 3], [], torch.empty(0, dtype=torch.uint8), 0
    for count in counts:
        data = torch.cat([data, torch.full((192,), 0xFF, dtype=torch.uint8)])
        starts.append(len(data))
        data = torch.cat([data, delta.encode(blocks[first : first + count], maker.cut(whole, first, count))])
        first += count
    assert [int(data[start]) for start in starts] == [1, 0, 1]
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    substitute = {name: tensor.to(DEVICE) for name, tensor in whole.items()}
    places = delta.places(starts, counts, DEVICE)
    found = delta.decode_on_device(Encoded(data.to(DEVICE), 6, 128, torch.bfloat16, substitute, places), out)
    assert torch.equal(found.cpu().view(torch.int16), blocks.view(torch.int16))
    with pytest.raises(AssertionError, match="parts begin at"):
        delta.places([32], [1], DEVICE)
