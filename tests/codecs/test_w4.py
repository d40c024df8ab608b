"""Weights that are published in four bits take their codes and scales; what is no such weight is kept as it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_scaled_codes import weights
from understudy.codecs import Encoded, candidates, codec
from understudy.codecs.beside_copy import HEADER
from understudy.kernels.eighths_coding import Factors
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import block


def returned(blocks: Tensor, factors: Factors | None) -> Tensor:
    """What was stored of `blocks`, which come back; on a GPU: tests/kernels/gpu/test_scaled_fours.py."""
    made = codec("w4")
    data = made.encode(blocks, {}, factors)
    part = Encoded(data.clone(), *blocks.shape[:2], blocks.dtype, {})
    out = torch.empty_like(blocks)
    assert made.decode(part, out) is out
    for found in (made.decode(part), out):
        assert torch.equal(found.view(torch.uint8), blocks.view(torch.uint8))
    return data


@pytest.mark.parametrize(("sharing", "points", "wanted"), [(32, "centre", 4.5), (128, "centre", 4.125), (32, "any", 4.75)])
def test_it_takes_the_bits_that_are_published(sharing: int, points: str, wanted: float) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        blocks, factors = weights(256, 512, sharing, dtype=dtype, points=points)
        assert returned(blocks, factors).numel() * 8 == blocks.numel() * wanted + HEADER * 8
    assert codec("w4").bits(torch.bfloat16, "int4") == codec("w4").bits(torch.float16, "int6") == 4.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([(64, 32), (70, 64), (3, 96), (64, 40)]), st.booleans())
def test_any_bits(seed: int, shape: tuple[int, int], told: bool) -> None:
    words = torch.randint(-(2**15), 2**15, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    blocks = block(words.view(torch.bfloat16))
    factors = Factors.of_rows(torch.randn(shape[0], 1, generator=torch.Generator().manual_seed(seed)), shape[1]) if told else None
    assert returned(blocks, factors).numel() == blocks.nbytes + HEADER


def test_float32_is_kept() -> None:
    assert not codec("w4").applies(torch.float32, "int4") and codec("w4").bits(torch.float32, "int4") == 32
    assert returned(block(torch.randn(64, 64)), Factors(torch.ones(1, 2, 1), 32)).numel() == 64 * 64 * 4 + HEADER


def test_what_is_kept_multiplies_as_it_is() -> None:
    blocks, x = block(torch.randn(128, 64).bfloat16()), torch.randn(5, 64).bfloat16()
    found = []
    for name in ("w4", "raw"):
        part = Encoded(codec(name).encode(blocks, {}), 2, 64, torch.bfloat16, {})
        out = torch.empty(5, 2, 64, dtype=torch.bfloat16)
        BlockProduct([(codec(name).operand(part), 0)])([x], out)
        found.append(out)
    assert torch.equal(*found)


@pytest.mark.parametrize("points", ["centre", "any"])
def test_an_operand_reads_the_same_bytes_elsewhere(points: str) -> None:
    blocks, factors = weights(128, 128, 64, points=points)
    data = codec("w4").encode(blocks, {}, factors)
    operand = codec("w4").operand(Encoded(data, 2, 128, torch.bfloat16, {}))
    assert operand.lies_in(data)
    there = data.clone()
    operand.move(there.data_ptr() - data.data_ptr(), there)
    data.zero_()
    x = torch.randn(1, 128).bfloat16()
    out, expected = (torch.empty(1, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    BlockProduct([(operand, 0)])([x], out)
    plain = codec("raw").operand(Encoded(codec("raw").encode(blocks, {}), 2, 128, torch.bfloat16, {}))
    BlockProduct([(plain, 0)])([x], expected)
    assert torch.equal(out, expected) and out.any()


def test_only_weights_in_four_bits_have_it() -> None:
    names = {form: [each.name for each in candidates(torch.bfloat16, "int4", form)] for form in ("", "fp8", "int4")}
    assert "w4" not in names[""] + names["fp8"] and names["int4"][0] == "w4"
