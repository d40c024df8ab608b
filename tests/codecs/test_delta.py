"""delta: every bit of every weight comes back, and ordinary weights take about half of their bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.codecs import Encoded, codec
from understudy.kernels.pack import block
from understudy.kernels.trailing import TRAILING
from understudy.quantizers import Tensors, quantizer

delta = codec("delta")


def _bits(weight: Tensor, spec: str = "int4", substitute: Tensors | None = None) -> float:
    """Bits a weight, checked to come back."""
    substitute = substitute or quantizer(spec).quantize(weight)
    blocks = block(weight)
    data = delta.encode(blocks, substitute)
    back = delta.decode(Encoded(data, *blocks.shape[:2], weight.dtype, substitute))
    assert torch.equal(back.view(torch.int16), blocks.view(torch.int16))
    return data.numel() * 8 / blocks.numel()


def _numbers(data: Tensor) -> list[int]:
    """Those of a part's header."""
    found: list[int] = data[:40].view(torch.int64).tolist()
    return found


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("int4", (7.8, 8.7)),
        ("int4:group=32", (7.8, 8.7)),
        ("int4:group=128", (7.8, 8.7)),
        ("int4:group=256", (7.8, 8.7)),
        ("int3", (8.7, 9.3)),
        ("int3:group=16", (8.7, 9.3)),
        ("int2", (9.8, 10.4)),
        ("int2:group=128", (9.8, 10.4)),
        ("int8", (4.5, 6.6)),
    ],
)
def test_ordinary_weights(spec: str, most: tuple[float, float]) -> None:
    for freedom, bits in zip((None, 4.0), most, strict=True):
        torch.manual_seed(0)
        weight = torch.distributions.StudentT(freedom).sample((256, 512)) if freedom else torch.randn(256, 512)
        assert _bits((weight * 0.02).to(torch.bfloat16), spec) < bits
        brief = _bits((weight * 0.02).half(), spec)
        assert TRAILING < brief < min(bits + TRAILING, 16)


def test_float16_that_was_bfloat16_takes_what_that_takes() -> None:
    torch.manual_seed(0)
    weight = (torch.randn(256, 512) * 0.02).to(torch.bfloat16)
    # of the smallest float16 has fewer bits, and of no weight more
    assert (weight.half().float() != weight.float()).any()
    assert abs(_bits(weight.half()) - _bits(weight)) < 0.01 and _bits(weight) < 8
    for dtype, kind in ((torch.float16, 3), (torch.bfloat16, 1)):
        data = delta.encode(block(weight.to(dtype)), quantizer("int4").quantize(weight))
        assert _numbers(data)[0] == kind and _numbers(data)[4] == 0
    data = delta.encode(block(weight.half() * 0.9), quantizer("int4").quantize(weight.half() * 0.9))
    assert _numbers(data)[4] == 24


def test_parts_of_another_type_are_not_read() -> None:
    weight = torch.randn(64, 64).to(torch.bfloat16)
    substitute = quantizer("int4").quantize(weight)
    data = delta.encode(block(weight), substitute)
    with pytest.raises(AssertionError, match="kind 1"):
        delta.decode(Encoded(data, 1, 64, torch.float16, substitute))


def _words(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16).view(dtype)


def _outlier() -> Tensor:
    weight = torch.randn(64, 64) * 1e-3
    weight[5, 5] = 1e4
    return weight.to(torch.bfloat16)


TENSORS = {
    "zeros": torch.zeros(64, 64, dtype=torch.bfloat16),
    "negative zeros": -torch.zeros(64, 64, dtype=torch.bfloat16),
    "constant": torch.full((64, 64), 0.37, dtype=torch.bfloat16),
    "one outlier": _outlier(),
    "subnormal": torch.randint(-127, 128, (64, 64), dtype=torch.int16).abs().view(torch.bfloat16),
    "both subnormal": (torch.randint(0, 128, (64, 64)) - 32768 * torch.randint(0, 2, (64, 64)))
    .to(torch.int16)
    .view(torch.bfloat16),
    "alternating": torch.where(torch.arange(64 * 64).view(64, 64) % 2 == 0, 0.5, -0.5).to(torch.bfloat16),
    "powers of two": torch.exp2(-torch.arange(64.0)).expand(64, 64).to(torch.bfloat16),
    "infinite": torch.full((64, 64), float("-inf"), dtype=torch.bfloat16),
    "not numbers": _words(64, 64).view(torch.int16).bitwise_or(0x7F80).view(torch.bfloat16),
    "largest": torch.where(torch.randn(64, 64) > 0, 3.3e38, -3.3e38).to(torch.bfloat16),
    "positive only": (torch.rand(64, 64) + 1).to(torch.bfloat16),
    "one row": torch.randn(1, 32).to(torch.bfloat16),
    "every float16": torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(64, 1024),
    "every small float16": torch.arange(-1024, 1024, dtype=torch.int16).view(torch.float16).view(64, 32),
    "negative zeros of float16": -torch.zeros(64, 64, dtype=torch.float16),
    "infinities of float16": torch.where(torch.randn(64, 64) > 1, float("-inf"), 0.1).half(),
    "largest of float16": torch.where(torch.randn(64, 64) > 0, 65504.0, -65504.0).half(),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_adversarial_weights(spec: str, name: str) -> None:
    torch.manual_seed(1)
    assert _bits(TENSORS[name], spec) <= 16.6  # never much more than the weight itself


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(64, 32), (70, 64), (130, 96), (3, 256)]),
    st.booleans(),
    st.sampled_from(["int2", "int2:group=16", "int3", "int3:group=16", "int4", "int6", "int8"]),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_any_weight_with_any_substitute(seed: int, shape: tuple[int, int], own: bool, spec: str, dtype: torch.dtype) -> None:
    """Lossless whatever the codes, scales and zeros are: they need not be of this weight, nor be sane."""
    weight = _words(*shape, seed=seed, dtype=dtype)
    substitute = quantizer(spec).quantize(weight if own else torch.randn(shape).to(torch.bfloat16))
    if not own:
        scales = substitute["scales"]
        substitute = {**substitute, "scales": _words(*scales.shape, seed=seed + 1)}
    _bits(weight, substitute=substitute)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-30, 30), st.floats(0.3, 8), st.sampled_from(["int2", "int3", "int4", "int6", "int8"]))
def test_weights_of_any_size_and_tail(seed: int, exponent: float, freedom: float, spec: str) -> None:
    torch.manual_seed(seed)
    weight = torch.distributions.StudentT(freedom).sample((128, 64)) * 2.0**exponent
    _bits(weight.to(torch.bfloat16), spec)
    _bits(weight.clamp(-65504, 65504).half(), spec)


def test_all_threads_give_the_same() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    try:
        assert _bits(torch.randn(1000, 256).to(torch.bfloat16)) < 8
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_slices_of_a_substitute(spec: str) -> None:
    """A part is decoded with views of the whole weight's codes and scales."""
    maker = quantizer(spec)
    weight = torch.randn(512, 128).to(torch.bfloat16)
    whole = maker.quantize(weight)
    part = maker.cut(whole, 2, 3)
    blocks = block(weight)[2:5]
    data = delta.encode(blocks, part)
    back = delta.decode(Encoded(data, 3, 128, torch.bfloat16, part))
    assert torch.equal(back.view(torch.int16), blocks.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_kinds_are_left_to_raw(dtype: torch.dtype) -> None:
    assert not delta.applies(torch.float32, "int4") and not delta.applies(dtype, "exact")
    assert all(delta.applies(dtype, spec) for spec in ("int2", "int3", "int4:group=32", "int6", "int8"))
    assert delta.bits(dtype, "int4") == 7.7 + (TRAILING if dtype == torch.float16 else 0) < delta.bits(torch.float32, "int4") == 32
