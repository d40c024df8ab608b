"""Weights that are published in FP8 take what their copy leaves open of their codes; what is no such weight is kept as it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_eighths_coding import weights
from understudy.codecs import Encoded, candidates, codec
from understudy.codecs.beside_copy import HEADER
from understudy.kernels.eighths_coding import Factors
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import unblock
from understudy.quantizers import Tensors, quantizer


def returned(blocks: Tensor, factors: Factors | None, substitute: Tensors) -> Tensor:
    """What was stored of `blocks`, which come back; on a GPU: tests/kernels/gpu/test_eighths.py."""
    made = codec("fp8")
    data = made.encode(blocks, substitute, factors)
    part = Encoded(data.clone(), *blocks.shape[:2], blocks.dtype, substitute)
    out = torch.empty_like(blocks)
    assert made.decode(part, out) is out
    for found in (made.decode(part), out):
        assert torch.equal(found.view(torch.uint8), blocks.view(torch.uint8))
    return data


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("spec", ["int3", "int4", "int6", "int8"])
def test_it_takes_about_the_bits_that_plans_count_with(spec: str, alike: bool) -> None:
    blocks, factors = weights(512, 1024, 128 if alike else 1024, alike=alike)
    substitute = quantizer(spec).quantize(unblock(blocks, 512))
    bits = returned(blocks, factors, substitute).numel() * 8 / blocks.numel()
    assert abs(bits - codec("fp8").bits(torch.bfloat16, spec)) < 0.5
    assert bits < codec("delta").encode(blocks, substitute).numel() * 8 / blocks.numel() / 1.7


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 99), st.sampled_from([(64, 32), (70, 64), (3, 96), (130, 576)]), st.sampled_from([16, 96, 128, 1 << 20]),
    st.booleans(), st.sampled_from(["int2", "int4:group=32", "int4", "int6", "int8"]), st.sampled_from(["any", "e4m3", "int4"]),
)  # fmt: skip
def test_every_bit_comes_back(seed: int, shape: tuple[int, int], wide: int, alike: bool, spec: str, kind: str) -> None:
    blocks, factors = weights(*shape, min(wide, shape[1]), alike=alike, seed=seed, kind=kind)
    returned(blocks, factors, quantizer(spec).quantize(unblock(blocks, shape[0])))


def test_what_would_not_be_smaller_is_kept_as_it_is() -> None:
    words = torch.randint(-(2**15), 2**15, (2, 64, 64), dtype=torch.int16)
    blocks = words.view(torch.bfloat16)
    substitute = quantizer("int4").quantize(torch.randn(128, 64).bfloat16())
    data = returned(blocks, None, substitute)
    assert data.numel() == blocks.nbytes + HEADER
    # factors that are none
    assert returned(blocks, Factors(torch.full((2, 1, 1), -1.0), 64), substitute).numel() == data.numel()
    found = []
    for name in ("fp8", "raw"):
        stored = Encoded(codec(name).encode(blocks.abs(), substitute), 2, 64, torch.bfloat16, substitute)
        out = torch.empty(5, 2, 64, dtype=torch.bfloat16)
        BlockProduct([(codec(name).operand(stored), 0)])([torch.ones(5, 64).bfloat16()], out)
        found.append(out)
    assert torch.equal(found[0].view(torch.int16), found[1].view(torch.int16))


def test_an_operand_reads_the_same_bytes_elsewhere() -> None:
    blocks, factors = weights(128, 128, 128, alike=False)
    substitute = quantizer("int4").quantize(unblock(blocks, 128))
    data = codec("fp8").encode(blocks, substitute, factors)
    operand = codec("fp8").operand(Encoded(data, 2, 128, torch.bfloat16, substitute))
    assert operand.lies_in(data)
    there = data.clone()
    operand.move(there.data_ptr() - data.data_ptr(), there)
    data.zero_()
    out, expected = (torch.empty(1, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    BlockProduct([(operand, 0)])([torch.ones(1, 128).bfloat16()], out)
    plain = codec("raw").operand(Encoded(codec("raw").encode(blocks, {}), 2, 128, torch.bfloat16, {}))
    BlockProduct([(plain, 0)])([torch.ones(1, 128).bfloat16()], expected)
    assert torch.equal(out, expected) and out.any()


def test_a_part_that_is_cut_is_noticed() -> None:
    blocks, factors = weights(64, 128, 128, alike=True)
    substitute = quantizer("int4").quantize(unblock(blocks, 64))
    data = codec("fp8").encode(blocks, substitute, factors)
    with pytest.raises(AssertionError, match="a residual of"):
        codec("fp8").decode(Encoded(data[:-64], 1, 128, torch.bfloat16, substitute))


def test_it_is_a_candidate_for_weights_in_fp8_alone() -> None:
    assert "fp8" not in [each.name for each in candidates(torch.bfloat16, "int4")]
    assert [each.name for each in candidates(torch.bfloat16, "int4", "fp8")] == ["fp8", "delta", "raw"]
    assert "fp8" not in [each.name for each in candidates(torch.float32, "int4", "fp8")]
