"""Blocks come back from codes and residual to the last bit, whichever tiles are read, by any number of threads."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels.pack import block
from understudy.kernels.residual import SLACK, Residual, decode, encode, tile_columns
from understudy.quantizers import Tensors, quantizer


def made(spec: str, shape: tuple[int, int], seed: int = 0, odd: int = 0) -> tuple[Tensor, Tensors, Residual]:
    """Blocks of a random weight in which every `odd`-th word is anything at all."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)
    substitute = quantizer(spec).quantize(weight)
    if odd:
        words = weight.view(torch.int16).view(-1)[::odd]
        words.copy_(torch.randint(-(2**15), 2**15, words.shape, generator=generator, dtype=torch.int16))
    blocks = block(weight)
    return blocks, substitute, encode(blocks, substitute["codes"], substitute["scales"])


def same(found: Tensor, blocks: Tensor) -> bool:
    return torch.equal(found.view(torch.int16), blocks.view(torch.int16))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["int2", "int3:group=16", "int4:group=32", "int4", "int6", "int8"]),
    st.integers(1, 200), st.sampled_from([32, 64, 192]), st.integers(0, 99), st.sampled_from([0, 1, 7, 50]),
)  # fmt: skip
def test_every_bit_comes_back(spec: str, rows: int, columns: int, seed: int, odd: int) -> None:
    blocks, substitute, residual = made(spec, (rows, columns), seed, odd)
    out = torch.full_like(blocks, float("nan"))
    decode(residual, substitute["codes"], substitute["scales"], out)
    assert same(out, blocks)
    tiles = len(blocks) * columns // tile_columns(columns, len(substitute["scales"]), substitute["codes"].shape[2] // 8)
    table = residual.table.to(torch.int64)
    assert table.shape == (tiles + 1, 2) and bool((table.diff(dim=0) >= 0).all())
    assert table[-1, 1] == len(residual.exceptions)
    assert -(-int(table[-1, 0]) // 8) + SLACK == residual.stream.numel()
    assert (not odd) or len(residual.exceptions) > 0


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_share_the_blocks() -> None:
    blocks, substitute, residual = made("int4", (64 * 20, 128), odd=90)
    assert blocks.numel() > 1 << 16
    out = torch.zeros_like(blocks)
    decode(residual, substitute["codes"], substitute["scales"], out)
    assert same(out, blocks)


def test_a_tile_has_the_columns_of_a_group_and_no_more_than_a_place_can_name() -> None:
    """Codes of 8 bits have one scale a row: their tiles are cut from it, so that a few columns are rebuilt at a time."""
    assert tile_columns(256, 4, 4) == 64 and tile_columns(256, 1, 4) == 256
    assert [tile_columns(columns, 1, 8) for columns in (4096, 576, 96)] == [128, 64, 32]


def test_scales_may_be_a_view_of_some_blocks() -> None:
    """As for a part of a Linear, whose substitute is cut and not copied."""
    maker = quantizer("int4")
    weight = torch.randn(64 * 5, 128, generator=torch.Generator().manual_seed(8)).to(torch.bfloat16)
    part = maker.cut(maker.quantize(weight), 2, 2)
    assert not part["scales"].is_contiguous()
    blocks = block(weight)[2:4].contiguous()
    out = torch.zeros_like(blocks)
    decode(encode(blocks, part["codes"], part["scales"]), part["codes"], part["scales"], out)
    assert same(out, blocks)
