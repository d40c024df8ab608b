"""Weights that are few numbers times a factor come back to the last bit, by kernels and by torch alone, whatever their factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import eighths_coding, residual
from understudy.kernels.eighths import BELOW_PATTERN, DENSE, MOST, WIDER, ZERO
from understudy.kernels.eighths_coding import LEAST, Factors, tile_of
from understudy.kernels.pack import BLOCK, block, columns_of, unblock
from understudy.kernels.residual import SLACK, Residual
from understudy.quantizers import Tensors, quantizer


def weights(rows: int, columns: int, wide: int, *, alike: bool, seed: int = 0, kind: str = "e4m3") -> tuple[Tensor, Factors]:
    """Blocks of codes of `kind` times factors, of which each holds for `wide` columns, and for a row or for all of a block."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // wide)
    own = torch.rand(rows, groups, generator=generator) * 1e-3 + 1e-4
    if alike:
        own = own[torch.arange(rows) // 64 * 64]
    if kind == "any":
        codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
        codes = torch.where(codes & 127 == 127, 0, codes).view(torch.float8_e4m3fn)
    else:
        spread = torch.randn(rows, columns, generator=generator) * (2 if kind == "int4" else 90)
        codes = spread.round().clamp(-8, 7) if kind == "int4" else spread.clamp(-448, 448).to(torch.float8_e4m3fn)
    made = (codes.float() * own.repeat_interleave(wide, 1)[:, :columns]).bfloat16()
    return block(made), Factors.of_rows(own, wide)


def decode(made: Residual, codes: Tensor, scales: Tensor, factors: Factors, out: Tensor) -> None:
    """Write the blocks into `out`, bfloat16 [nb, K, 64], by torch alone."""
    count, columns, _ = out.shape
    tile = tile_of(columns, scales.shape[0], codes.shape[2] // 8, factors.columns)
    out.copy_(_decoded(codes, scales, factors, made.dense.view(count, columns, -1), made.stream))
    table = made.table[:, 1].to(torch.int64)
    which = torch.repeat_interleave(table.diff(), output_size=len(made.exceptions))
    listed = made.exceptions.to(torch.int64)
    out.view(torch.int16).view(-1)[which * tile * BLOCK + listed[:, 0]] = listed[:, 1].to(torch.int16)


def _decoded(codes: Tensor, scales: Tensor, factors: Factors, dense: Tensor, stream: Tensor) -> Tensor:
    """The blocks, but for exceptions."""
    count, columns = codes.shape[:2]
    own = factors.values.repeat_interleave(factors.columns, 1)[:, :columns] if factors.values.shape[1] > 1 else factors.values
    inverse = 1 / own
    units = scales.view(scales.shape[0], count, BLOCK, 2).to(torch.float32).permute(3, 1, 0, 2)
    scale, zero = (each.repeat_interleave(columns // scales.shape[0], 1) * inverse for each in units)
    bits = codes.shape[2] // 8
    centre, half = 1 << bits - 1, 0.5 + WIDER[bits]
    product = columns_of(codes).to(torch.float32) * scale
    low, high = (_pattern(product + (zero - (centre + each) * scale)) for each in (half, -half))
    straddles = (low ^ high) < 0
    span = high - low
    most = torch.where(straddles, ZERO, span.abs() - 1)
    always = DENSE[bits]
    needs = torch.stack([straddles, *(most >= 1 << bit for bit in range(always, MOST))], 2)
    places = needs.view(-1).cumsum(0).view(needs.shape) - 1
    # there is something behind the last bit
    found = (stream.index_select(0, (places.clamp_(min=0) >> 3).view(-1)).view(needs.shape) >> (places & 7).to(torch.uint8)) & 1
    found *= needs
    lower = torch.where(straddles, found[:, :, 0] != 0, span < 0)
    place = torch.zeros_like(low)
    for bit in range(MOST):
        own_bit = _rows_of(dense[:, :, 8 * bit : 8 * bit + 8]) if bit < always else found[:, :, 1 + bit - always]
        place |= own_bit.to(torch.int32) << bit
    number = torch.where(lower, low, high) - place << BELOW_PATTERN
    number = torch.where(place == ZERO, number & -(1 << 31), number)
    return (number.view(torch.float32) * own).to(torch.bfloat16)


def _rows_of(eights: Tensor) -> Tensor:
    """The bits of 8 bytes, a byte each: [..., 8] to [..., 64]."""
    places = torch.arange(8, dtype=torch.uint8, device=eights.device)
    return (eights[..., None] >> places & 1).flatten(-2)


def _pattern(numbers: Tensor) -> Tensor:
    """The patterns of float32, each with its sign in all higher bits."""
    return numbers.contiguous().view(torch.int32) >> BELOW_PATTERN


def returned(blocks: Tensor, factors: Factors, substitute: Tensors) -> Residual:
    """The residual of `blocks`, which come back by kernels and by torch."""
    codes, scales = substitute["codes"], substitute["scales"]
    made = eighths_coding.encode(blocks, codes, scales, factors)
    assert made is not None
    out = [torch.full_like(blocks, float("nan")) for _ in range(2)]
    residual.decode_described(eighths_coding.described(made, codes, scales, factors), out[0])
    decode(made, codes, scales, factors, out[1])
    for found in out:
        assert torch.equal(found.view(torch.int16), blocks.view(torch.int16))
    assert -(-int(made.table[-1, 0]) // 8) + SLACK == made.stream.numel()
    return made


def size(made: Residual, blocks: Tensor) -> float:
    """Bits of a weight."""
    return 8 * (made.stream.nbytes + made.table.nbytes + made.exceptions.nbytes) / blocks.numel()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int2", "int3:group=16", "int4:group=32", "int4", "int4:group=128", "int6", "int8"]),
    st.integers(1, 200), st.sampled_from([32, 64, 192, 576]), st.sampled_from([8, 32, 96, 128, 1 << 20]), st.booleans(),
    st.integers(0, 99), st.sampled_from(["e4m3", "any", "int4"]), st.sampled_from([0, 1, 7, 50]),
)  # fmt: skip
def test_every_bit_comes_back(
    spec: str, rows: int, columns: int, wide: int, alike: bool, seed: int, kind: str, odd: int
) -> None:
    blocks, factors = weights(rows, columns, min(wide, columns), alike=alike, seed=seed, kind=kind)
    substitute = quantizer(spec).quantize(unblock(blocks, rows))
    if odd:
        words = blocks.view(torch.int16).view(-1)[::odd]
        generator = torch.Generator().manual_seed(seed)
        words.copy_(torch.randint(-(2**15), 2**15, words.shape, generator=generator, dtype=torch.int16))
    made = returned(blocks, factors, substitute)
    assert (odd == 0) or len(made.exceptions) > 0


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("spec", "most"), [("int3", 5.1), ("int4", 3.6), ("int6", 1.4), ("int8", 1.3)])
def test_few_bits_are_needed(spec: str, most: float, alike: bool) -> None:
    blocks, factors = weights(256, 1024, 128, alike=alike)
    assert size(returned(blocks, factors, quantizer(spec).quantize(unblock(blocks, 256))), blocks) < most


def test_zeros_of_both_signs_and_the_largest_and_smallest_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8)[(torch.arange(256) & 127) != 127].view(torch.float8_e4m3fn).float()
    rows = torch.stack([codes.roll(j)[:192] for j in range(64)])
    rows[:, ::3], rows[::2, 1::3] = 0.0, -0.0
    blocks, factors = block((rows * 0.003).bfloat16()), Factors.of_rows(torch.full((64, 1), 0.003), 192)
    returned(blocks, factors, quantizer("int4").quantize(unblock(blocks, 64)))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_zeros_take_no_more_than_other_weights(share: float) -> None:
    """They are places of bins that straddle zero, no exceptions."""
    blocks, factors = weights(128, 512, 128, alike=True)
    blocks.view(-1)[torch.rand(blocks.numel(), generator=torch.Generator().manual_seed(1)) < share] = 0.0
    made = returned(blocks, factors, quantizer("int4").quantize(unblock(blocks, 128)))
    assert len(made.exceptions) < blocks.numel() / 100


@pytest.mark.parametrize("alike", [True, False])
def test_rows_of_zeros_are_no_exceptions(alike: bool) -> None:
    """As they fill the last block up."""
    blocks, factors = weights(70, 512, 128, alike=alike)
    made = returned(blocks, factors, quantizer("int4").quantize(unblock(blocks, 70)))
    assert len(made.exceptions) < blocks.numel() / 100


def test_tiles_share_scales_and_factors() -> None:
    assert tile_of(512, 8, 4, 128) == 64 and tile_of(512, 8, 4, 32) == 32 and tile_of(576, 9, 4, 96) == 32
    assert tile_of(512, 8, 4, 512) == 64 and tile_of(96, 3, 4, 96) == 32 and tile_of(512, 1, 8, 128) == 128


def test_factors_of_rows_are_one_for_a_block_where_they_can() -> None:
    rows = torch.tensor([[1.0, 2.0]] * 64 + [[3.0, 4.0]] * 6)
    made = Factors.of_rows(rows, 128)
    assert made.values.tolist() == [[[1.0], [2.0]], [[3.0], [4.0]]] and made.columns == 128
    rows[3, 0] = 0.5
    made = Factors.of_rows(rows, 128)
    assert made.values.shape == (2, 2, 64) and made.values[0, 0, 3] == 0.5 and made.values[1, 1, 63] == 4
    # zero times a factor of 0 is zero times any other
    assert Factors.of_rows(torch.zeros(3, 1), 64).values.tolist() == [[[1.0]]]


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90, -1.0, float("nan")])
def test_factors_out_of_range_are_told(factor: float) -> None:
    blocks, _ = weights(64, 64, 64, alike=True)
    substitute = quantizer("int4").quantize(unblock(blocks, 64))
    values = torch.full((1, 1, 1), factor)
    assert eighths_coding.encode(blocks, substitute["codes"], substitute["scales"], Factors(values, 64)) is None
    own = {**substitute, "scales": torch.full_like(substitute["scales"], float("inf"))}
    assert eighths_coding.encode(blocks, own["codes"], own["scales"], Factors(torch.ones(1, 1, 1), 64)) is None


def test_factors_for_too_few_columns_are_told() -> None:
    blocks, _ = weights(64, 64, 64, alike=True)
    substitute = quantizer("int4").quantize(unblock(blocks, 64))
    few = Factors(torch.ones(1, -(-64 // (LEAST // 2)), 1), LEAST // 2)
    assert eighths_coding.encode(blocks, substitute["codes"], substitute["scales"], few) is None


def test_weights_near_the_smallest_usual_number() -> None:
    """What is no usual bfloat16 is listed, since some processors take it for 0."""
    blocks, _ = weights(64, 64, 64, alike=True)
    substitute = quantizer("int4").quantize(unblock(blocks, 64))
    tiny = (blocks.float() / blocks.float().abs().max() * 2.0**-120).bfloat16()
    blocks[0, ::2] = tiny[0, ::2]
    blocks[0, 1] = torch.tensor(2.0**-130).bfloat16()
    made = returned(blocks, Factors(torch.full((1, 1, 1), 2.0**-70), 64), substitute)
    assert len(made.exceptions) >= 64
