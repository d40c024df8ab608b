"""The GPU's decoder of float16 weights, here in Triton's interpreter, against the CPU's: every bit of every weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.codecs.test_delta import TENSORS, _words
from tests.device import DEVICE
from understudy.codecs import Encoded, codec
from understudy.kernels.pack import block
from understudy.quantizers import Tensors, quantizer

pytest.importorskip("triton")

from understudy.kernels.gpu import trailing

delta = codec("delta")
HALVES = [name for name, tensor in TENSORS.items() if tensor.dtype == torch.float16]


def came_back(blocks: Tensor, substitute: Tensors) -> list[int]:
    """The header of what was encoded, after checking that both decoders give it back, into memory full of NaNs."""
    data = delta.encode(blocks, substitute)
    expected = delta.decode(Encoded(data, *blocks.shape[:2], blocks.dtype, substitute))
    here = {name: tensor.to(DEVICE) for name, tensor in substitute.items()}
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    found = delta.decode_on_device(Encoded(data.to(DEVICE), *blocks.shape[:2], blocks.dtype, here), out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(found.cpu().view(torch.int16), expected.view(torch.int16))
    assert torch.equal(expected.view(torch.int16), blocks.view(torch.int16))
    header: list[int] = data[:40].view(torch.int64).tolist()
    return header


@pytest.mark.parametrize("spec", ["int4:group=32", "int4", "int3", "int2", "int6", "int8"])
def test_ordinary_weights(spec: str) -> None:
    torch.manual_seed(0)
    weight = (torch.distributions.StudentT(3.0).sample((70, 128)) * 0.02).half()
    weight[5, 7] = -0.0
    kind, _, stream, exceptions, pitch = came_back(block(weight), quantizer(spec).quantize(weight))
    assert kind == 3 and stream > 0 and exceptions > 0 and pitch == 24
    brief = weight.bfloat16().half()
    assert came_back(block(brief), quantizer(spec).quantize(brief))[4] == 0


@pytest.mark.parametrize("name", HALVES)
def test_adversarial_weights(name: str) -> None:
    came_back(block(TENSORS[name]), quantizer("int4").quantize(TENSORS[name]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([(64, 32), (70, 64), (3, 96)]), st.floats(0, 1), st.sampled_from([1, 2.0**-14]))
def test_any_weight(seed: int, shape: tuple[int, int], odd: float, size: float) -> None:
    """`odd`: the share of the weights that are any 16 bits at all; `size`: with the smallest, most are subnormal."""
    torch.manual_seed(seed)
    plain = (torch.randn(shape) * size).half()
    weight = torch.where(torch.rand(shape) < odd / 8, _words(*shape, seed=seed, dtype=torch.float16), plain)
    came_back(block(weight), quantizer("int4").quantize(plain))


def test_parts_that_lie_apart_are_decoded_in_one_launch() -> None:
    """One without trailing bits, one that was kept as it is, and one with such bits, with other bytes between them; more columns
    than a program has."""
    torch.manual_seed(1)
    columns = trailing.COLUMNS + 32
    weight = torch.randn(384, columns).half()
    weight[128:192] = _words(64, columns, seed=3, dtype=torch.float16)
    weight[:128] = weight[:128].bfloat16().half()
    maker, blocks = quantizer("int4"), block(weight)
    whole = maker.quantize(torch.where(weight.abs() < 4, weight, 0))
    counts, starts, data, first = [2, 1, 3], [], torch.empty(0, dtype=torch.uint8), 0
    for count in counts:
        data = torch.cat([data, torch.full((192,), 0xFF, dtype=torch.uint8)])
        starts.append(len(data))
        data = torch.cat([data, delta.encode(blocks[first : first + count], maker.cut(whole, first, count))])
        first += count
    headers = [data[start : start + 40].view(torch.int64).tolist() for start in starts]
    assert [header[0] for header in headers] == [3, 0, 3] and headers[0][4] == 0 and headers[2][4] == 24
    out = torch.full_like(blocks, torch.nan, device=DEVICE)
    substitute = {name: tensor.to(DEVICE) for name, tensor in whole.items()}
    places = delta.places(starts, counts, DEVICE)
    found = delta.decode_on_device(Encoded(data.to(DEVICE), 6, columns, torch.float16, substitute, places), out)
    assert torch.equal(found.cpu().view(torch.int16), blocks.view(torch.int16))
