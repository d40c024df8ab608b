"""Weights that are few numbers times a factor come back to the last bit, by kernels and by torch alone, whatever their factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import eighths_coding, residual
from understudy.kernels.eighths_coding import LEAST, Factors, tile_of
from understudy.kernels.pack import block, unblock
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


def returned(blocks: Tensor, factors: Factors, substitute: Tensors) -> Residual:
    """The residual of `blocks`, which come back by both ways."""
    codes, scales = substitute["codes"], substitute["scales"]
    made = eighths_coding.encode(blocks, codes, scales, factors)
    assert made is not None
    out = [torch.full_like(blocks, float("nan")) for _ in range(2)]
    residual.decode_described(eighths_coding.described(made, codes, scales, factors), out[0])
    eighths_coding.decode(made, codes, scales, factors, out[1])
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
