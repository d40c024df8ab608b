"""Codes of four bits with scales, made bfloat16 by vector code: the very bits of each code less its zero point times its scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import residual, scaled_codes
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import BLOCK
from understudy.kernels.scaled_codes import ScaledCodes, described
from understudy.kernels.scaled_fours import CENTRE


def made(
    count: int, columns: int, sharing: int, *, kind: str = "bfloat16", zeros: bool = False, seed: int = 0, halved: bool = False
) -> ScaledCodes:
    """Any codes of `count` blocks, with scales of either sign, large and small, and zero points if `zeros`. `halved`: weights are
    float16 on the way, of which some are so small that they are no usual numbers there."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, columns // sharing, BLOCK
    scales = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-70, 70, shape, generator=generator).float())
    points = torch.randint(-16, 17, shape, generator=generator, dtype=torch.int8) if zeros else None
    codes = torch.randint(0, 256, (count, columns, 32), generator=generator, dtype=torch.uint8)
    if halved:
        scales = (torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-26, 8, shape, generator=generator))).half()
    return ScaledCodes(codes, scales.to(getattr(torch, kind)), points, sharing, halved)


def reference(own: ScaledCodes, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The blocks, number by number."""
    codes = torch.cat((own.codes & 15, own.codes >> 4), dim=2).to(torch.float64)
    scales, zeros = (
        each.double().repeat_interleave(own.columns, 1)
        for each in (own.scales, torch.full(own.scales.shape, CENTRE) if own.zeros is None else own.zeros)
    )
    # float64 holds each product as it is; those of float32 are rounded to it first
    exact = ((codes - zeros) * scales).float()
    return (exact.half() if own.halved else exact).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)


SIZES = [(1, 32, 32), (2, 96, 32), (3, 128, 8), (2, 576, 64), (1, 512, 256), (2, 288, 96), (1, 360, 360), (2, 48, 24)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(SIZES), st.sampled_from(["bfloat16", "float32"]), st.booleans(), st.booleans())
def test_kernels_and_torch_make_the_same_bits(
    seed: int, sizes: tuple[int, int, int], kind: str, zeros: bool, halved: bool
) -> None:
    own = made(*sizes, kind=kind, zeros=zeros, seed=seed, halved=halved)
    expected = reference(own)
    blocks = described(own, torch.bfloat16)
    for decode in (lambda out: residual.decode_described(blocks, out), lambda out: scaled_codes.decode(own, out)):
        out = torch.empty_like(expected)
        decode(out)
        assert torch.equal(bits(out), bits(expected))


def test_every_code_and_a_scale_that_rounds() -> None:
    """Halves between two bfloat16s go to the even one, up and down."""
    codes = (torch.arange(32, dtype=torch.uint8) % 16 * 17).view(1, 32, 1).repeat(1, 1, 32)
    scales = (1 + torch.arange(64) / 128).view(1, 1, 64)
    for sign in (1, -1):
        own = ScaledCodes(codes, (sign * scales).bfloat16(), None, 32)
        out, expected = torch.empty(1, 32, 64, dtype=torch.bfloat16), reference(own)
        residual.decode_described(described(own, out.dtype), out)
        assert torch.equal(bits(out), bits(expected)) and len(out.unique()) > 200
        exact = (torch.cat((codes & 15, codes >> 4), 2).double() - 8) * sign * scales.double()
        assert (expected.double() > exact).any() and (expected.double() < exact).any()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("columns", "sharing"), [(32, 32), (160, 32), (512, 128), (1024, 512), (96, 24)])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 33])
def test_products_are_those_of_the_weights_as_they_are(rows: int, columns: int, sharing: int, zeros: bool) -> None:
    own = made(3, columns, sharing, zeros=zeros, seed=columns)
    own = ScaledCodes(own.codes, own.scales.clamp(-2, 2), own.zeros, sharing)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = [torch.empty(rows, 3, 64, dtype=torch.bfloat16) for _ in range(2)]
    for operand, out in zip((Operand.scaled(own), Operand.plain(reference(own))), found, strict=True):
        BlockProduct([(operand, 0)])([x], out)
    assert torch.equal(bits(found[0]), bits(found[1])) and found[0].float().abs().sum() > 0
