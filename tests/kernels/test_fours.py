"""MXFP4 to bfloat16: every code and exponent, in vector code and in torch, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.quantised import packed
from understudy.codecs import Encoded, codec
from understudy.kernels import fours
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.fours import LARGEST, LEAST
from understudy.kernels.pack import block


def weights_of(codes: Tensor, exponents: Tensor) -> Tensor:
    """Rows [n, K] of published codes [n, K / 32, 16] and exponents [n, K / 32]."""
    form = packed(codes[None], exponents[None], (1, 32))
    return form.values(codes.flatten(1), exponents, 0, torch.bfloat16)


def random(rows: int, columns: int, seed: int = 0, spread: tuple[int, int] = (110, 130)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(*spread, (rows, columns // 32), generator=generator, dtype=torch.uint8)
    return weights_of(codes, exponents)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(64, 32), (200, 96), (3, 128)]), st.integers(LEAST, LARGEST - 1))
def test_codes_come_back(seed: int, shape: tuple[int, int], lowest: int) -> None:
    """Of any codes and exponents: those that are told stand for the same weights, signed zeros too."""
    blocks = block(random(*shape, seed, (lowest, min(lowest + 9, LARGEST + 1))))
    made = fours.encode(blocks)
    # all codes of some 32 may be small ones, whose told exponent is less than theirs
    if made is None:
        assert lowest < LEAST + 4
        return
    out = torch.empty_like(blocks)
    fours.decode(*made, out)
    assert torch.equal(bits(out), bits(blocks))


def test_zeros_small_codes_and_ends() -> None:
    codes = torch.zeros(64, 3, 16, dtype=torch.uint8)
    codes[:, 1] = 0x91
    codes[5, 0] = 0x88
    codes[6, 2, 3] = 0x7F
    blocks = block(weights_of(codes, torch.full((64, 3), 120, dtype=torch.uint8)))
    made = fours.encode(blocks)
    assert made is not None and made[1][0, 1, 0] == 117
    out = torch.empty_like(blocks)
    fours.decode(*made, out)
    assert torch.equal(bits(out), bits(blocks)) and out.view(-1)[:64].view(torch.int16)[5] == -32768


@pytest.mark.parametrize(
    "spoilt", [5 / 8, 0.0390625 * 1.25, 2.0**-30, float("nan"), float("inf"), 1e-40, 3e38], ids=lambda value: f"{value:.3g}"
)
def test_what_is_no_code_is_told(spoilt: float) -> None:
    blocks = block(random(64, 64))
    assert fours.encode(blocks) is not None
    blocks[0, 40, 17] = spoilt
    assert fours.encode(blocks) is None


def test_columns_that_are_no_whole_groups_have_no_codes() -> None:
    assert fours.encode(block(torch.zeros(64, 48, dtype=torch.bfloat16))) is None


@pytest.mark.parametrize("columns", [32, 160, 512])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33])
def test_products_are_those_of_the_weights_as_they_are(rows: int, columns: int) -> None:
    blocks = block(random(200, columns, seed=columns))
    made = fours.encode(blocks)
    assert made is not None
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = [torch.empty(rows, len(blocks), 64, dtype=torch.bfloat16) for _ in range(2)]
    for operand, out in zip((Operand.fours(*made), Operand.plain(blocks)), found, strict=True):
        BlockProduct([(operand, 0)])([x], out)
    assert torch.equal(bits(found[0]), bits(found[1])) and found[0].float().abs().sum() > 0


def test_an_operand_reads_the_same_bytes_elsewhere() -> None:
    blocks = block(random(128, 64))
    data = codec("mxfp4").encode(blocks, {})
    operand = codec("mxfp4").operand(Encoded(data, 2, 64, torch.bfloat16, {}))
    assert operand.lies_in(data)
    there = data.clone()
    operand.move(there.data_ptr() - data.data_ptr(), there)
    data.zero_()
    x, out = torch.ones(1, 64).bfloat16(), torch.empty(1, 2, 64, dtype=torch.bfloat16)
    BlockProduct([(operand, 0)])([x], out)
    expected = torch.empty_like(out)
    BlockProduct([(Operand.plain(blocks), 0)])([x], expected)
    assert torch.equal(out, expected) and out.any()
