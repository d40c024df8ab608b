"""Weights that are published in MXFP4 take 4.25 bits each; what is no such weight is kept as it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_fours import random
from understudy.codecs import CODECS, OF_FORMS, Encoded, candidates, codec, copying
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import block


def returned(blocks: Tensor) -> Tensor:
    """What was stored of `blocks`, which come back by all ways."""
    made = codec("mxfp4")
    data = made.encode(blocks, {})
    part = Encoded(data.clone(), *blocks.shape[:2], blocks.dtype, {})
    out = torch.empty_like(blocks)
    assert made.decode(part, out) is out
    for found in (made.decode(part), out, made.decode_on_device(part)):
        assert torch.equal(found.view(torch.uint8), blocks.view(torch.uint8))
    return data


def test_it_takes_the_bits_that_are_published() -> None:
    blocks = block(random(256, 512))
    assert returned(blocks).numel() * 8 / blocks.numel() == codec("mxfp4").bits(torch.bfloat16, "int4") == 4.25


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([(64, 32), (70, 64), (3, 96), (64, 40)]))
def test_any_bits(seed: int, shape: tuple[int, int]) -> None:
    words = torch.randint(-(2**15), 2**15, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    blocks = block(words.view(torch.bfloat16))
    assert returned(blocks).numel() == blocks.nbytes + 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_are_kept(dtype: torch.dtype) -> None:
    assert not codec("mxfp4").applies(dtype, "int4") and codec("mxfp4").bits(dtype, "int4") == dtype.itemsize * 8
    returned(block(torch.randn(64, 64).to(dtype)))


def test_what_is_kept_multiplies_as_it_is() -> None:
    blocks, x = block(torch.randn(128, 64).bfloat16()), torch.randn(5, 64).bfloat16()
    found = []
    for name in ("mxfp4", "raw"):
        part = Encoded(codec(name).encode(blocks, {}), 2, 64, torch.bfloat16, {})
        out = torch.empty(5, 2, 64, dtype=torch.bfloat16)
        BlockProduct([(codec(name).operand(part), 0)])([x], out)
        found.append(out)
    assert torch.equal(*found)


def test_nobody_chooses_it_for_other_weights() -> None:
    assert not set(OF_FORMS) & {*CODECS, *copying(), *(each.name for each in candidates(torch.bfloat16, "int4"))}
