"""Every codec gives back every bit of every block. A new one is tested by being in the table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.codecs import CODECS, Codec, Encoded, codec
from understudy.kernels.pack import block
from understudy.quantizers import QUANTIZERS, quantizer


def _check(made: Codec, weight: Tensor, spec: str = "int4") -> Tensor:
    substitute = quantizer(spec).quantize(weight)
    blocks = block(weight)
    data = made.encode(blocks, substitute)
    assert data.dtype == torch.uint8 and data.dim() == 1
    arrived = torch.zeros(-(-data.numel() // 4096) * 4096, dtype=torch.uint8)[: data.numel()].copy_(data)
    count, columns, _ = blocks.shape
    part = Encoded(arrived, count, columns, weight.dtype, substitute)
    back = made.decode(part)
    assert torch.equal(back.view(torch.uint8), blocks.view(torch.uint8))
    out = torch.empty_like(blocks)
    again = made.decode(part, out)
    assert again.data_ptr() == out.data_ptr() and torch.equal(out.view(torch.uint8), blocks.view(torch.uint8))
    return data


@pytest.fixture(params=list(CODECS))
def made(request: pytest.FixtureRequest) -> Codec:
    return codec(request.param)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 64), (200, 96), (1, 32)])
@pytest.mark.parametrize("spec", [*QUANTIZERS, "int2:group=16"])
def test_weights(made: Codec, dtype: torch.dtype, shape: tuple[int, int], spec: str) -> None:
    if made.applies(dtype, spec):
        weight = (torch.randn(shape) * 0.02).to(dtype)
        data = _check(made, weight, spec)
        assert data.numel() <= block(weight).nbytes * 1.1 + 4096
    assert codec(made.name).name == made.name
    assert 0 < made.bits(dtype, spec) <= dtype.itemsize * 8


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(64, 32), (70, 64), (3, 96)]),
    st.sampled_from(["int2", "int3:group=16", "int3", "int4", "int6", "int8"]),
)
@pytest.mark.parametrize("name", list(CODECS))
def test_any_bits(name: str, seed: int, shape: tuple[int, int], spec: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
    made = codec(name)
    for dtype in (torch.bfloat16, torch.float16):
        if made.applies(dtype, spec):
            _check(made, words.view(dtype), spec)
