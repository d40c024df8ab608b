"""An exact Linear gives every bit of its weight back, part by part, and multiplies by it whichever way the device can."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fake_device import FakeDevice
from understudy.codecs import CODECS, codec
from understudy.devices import Device
from understudy.devices.processor import Processor
from understudy.errors import UsageError
from understudy.kernels.exact_product import applies
from understudy.kernels.pack import block, unblock
from understudy.models.stream.exact_linear import ExactLinear
from understudy.models.stream.load import whole_bytes
from understudy.quantizers import quantizer
from understudy.weights.entries import LinearEntry

ROWS, COLUMNS = 150, 128


def linear(name: str, weight: Tensor, device: Device) -> tuple[ExactLinear, list[tuple[Tensor, int, int]]]:
    """An ExactLinear of `weight` stored by codec `name`, and its parts of one and two blocks: bytes, first block, blocks."""
    maker, blocks = quantizer("int4"), block(weight)
    tensors = maker.quantize(weight)
    entry = LinearEntry("linear", "linear.weight", weight.shape, weight.dtype, "int4", {}, name, (), "")
    buffer = device.arena(whole_bytes(COLUMNS, 2, weight.dtype))
    made = ExactLinear(entry, maker, tensors, buffer, device)
    parts = []
    for first, count in ((0, 1), (1, 2)):
        data = codec(name).encode(blocks[first : first + count], maker.cut(tensors, first, count))
        parts.append((data, first, count))
    return made, parts


def weights(seed: int) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)).bfloat16() * 0.05


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_blocks_have_every_bit_of_the_weight(name: str, seed: int) -> None:
    weight = weights(seed)
    made, parts = linear(name, weight, Processor(1))
    pieces = [made.blocks(data, first, count).clone() for data, first, count in parts]
    assert torch.equal(unblock(torch.cat(pieces), ROWS).view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("name", CODECS)
def test_tiles_are_multiplied_by_decoded_parts(name: str) -> None:
    weight, tiles = weights(1), torch.randn(2, 32, COLUMNS).bfloat16()
    made, parts = linear(name, weight, Processor(1))
    out = torch.full((2, 32, 3, 64), torch.nan, dtype=torch.bfloat16)
    made.multiply(parts, list(tiles), out)
    found = out.view(2, 32, -1)[:, :, :ROWS].float()
    assert torch.allclose(found, tiles.float() @ weight.float().T, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(not applies(torch.bfloat16, COLUMNS), reason="no bfloat16 instructions")
@pytest.mark.parametrize("name", CODECS)
def test_a_product_without_decoding_multiplies_rows_by_the_same_weights(name: str) -> None:
    weight, x = weights(2), torch.randn(5, COLUMNS).bfloat16()
    made, parts = linear(name, weight, Processor(1))
    product, out = made.product(torch.bfloat16), torch.empty(5, 3, 64, dtype=torch.bfloat16)
    assert product is not None
    for data, first, count in parts:  # one by one: an operand may hold only until the next one
        product([made.operand(data, first, count)])([x], out)
    found = out.view(5, -1)[:, :ROWS].float()
    assert torch.allclose(found, x.float() @ weight.float().T, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(not applies(torch.bfloat16, COLUMNS), reason="no bfloat16 instructions")
@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6))
def test_a_part_that_lies_elsewhere_in_the_next_pass_multiplies_as_before(name: str, seed: int, rows: int) -> None:
    weight, x = weights(seed), torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed)).bfloat16()
    made, parts = linear(name, weight, Processor(1))
    product = made.product(torch.bfloat16)
    assert product is not None
    outs, operands, multiply = [], {}, {}
    for _ in range(3):
        out = torch.empty(rows, 3, 64, dtype=torch.bfloat16)
        for data, first, count in parts:
            data = data.clone()
            operand = made.operand(data, first, count)
            if operands.setdefault(first, operand[0]) is not operand[0] or first not in multiply:
                operands[first], multiply[first] = operand[0], product([operand])
            multiply[first]([x], out)
            # what lay there is gone
            data.fill_(255)
        outs.append(out)
    assert all(torch.equal(out.view(torch.int16), outs[0].view(torch.int16)) for out in outs)
    if name in ("raw", "delta"):
        (data, first, count), *_ = parts
        assert made.operand(data, first, count)[0] is operands[first], "it is made once"


def test_rows_of_another_type_are_multiplied_by_decoded_parts() -> None:
    made, _ = linear("raw", weights(3), Processor(1))
    assert made.product(torch.float16) is None and made.product(torch.float32) is not None
    assert linear("raw", weights(3), FakeDevice(triton=False))[0].product(torch.bfloat16) is None


def test_a_device_that_cannot_decode_refuses() -> None:
    with pytest.raises(UsageError, match="Weights stored as delta need Triton on fake"):
        linear("delta", weights(4), FakeDevice(triton=False))
