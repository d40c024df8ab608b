"""Blocks hold every bit of a weight, whatever its shape; packed codes are what ATen's kernel reads, or it is not used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels import pack


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 150), st.sampled_from([torch.bfloat16, torch.float32, torch.uint8]))
def test_blocks(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = torch.randint(0, 256, (rows, columns * dtype.itemsize), dtype=torch.uint8).view(dtype)
    blocks = pack.block(weight)
    assert blocks.shape == (pack.blocks_of(rows), columns, 64)
    bytes_of = weight.view(torch.uint8)
    assert torch.equal(pack.unblock(blocks, rows).view(torch.uint8), bytes_of)
    b, j, k = (rows - 1) // 64, (rows - 1) % 64, columns - 1
    assert torch.equal(blocks[b, k, j].view(-1).view(torch.uint8), weight[rows - 1, k].view(-1).view(torch.uint8))
    padding = blocks.transpose(1, 2).reshape(-1, columns)[rows:]
    assert not padding.clone(memory_format=torch.contiguous_format).view(torch.uint8).any()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 150), st.sampled_from([2, 3, 4]))
def test_codes(rows: int, columns: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    packed = pack.pack(codes, bits)
    assert packed.shape == (pack.blocks_of(rows), columns, 8 * bits)
    assert torch.equal(pack.unpack(packed, rows), codes)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="other CPUs pack differently")
def test_native_where_expected() -> None:
    assert pack.native_packing()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_infinities_are_seen(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 50).to(dtype)
    tensor[1, 1] = torch.finfo(dtype).max
    tensor[2, 2] = torch.finfo(dtype).min
    assert pack.unusable_value(tensor) is None
    tensor[0, 7] = float("-inf")
    assert pack.unusable_value(tensor) == pack.unusable_value(-tensor) == "an infinity"
    tensor[2, 49] = float("nan")
    assert pack.unusable_value(tensor) == pack.unusable_value(-tensor) == "NaN"
    assert pack.unusable_value(torch.empty(0, dtype=dtype)) is None


def test_numbers_that_are_always_usable() -> None:
    assert pack.unusable_value(torch.arange(5)) is None
    assert pack.unusable_value(torch.ones(3).to(torch.float8_e4m3fn)) is None
    assert pack.unusable_value(torch.tensor([1e300], dtype=torch.float64)) is None


def test_bytes_of_a_tensor_are_its_own_memory() -> None:
    tensor = torch.zeros(2, 3, dtype=torch.float32)
    pack.flat(tensor)[4] = 1
    assert tensor[0, 1] != 0 and pack.flat(tensor).shape == (24,)
    assert pack.flat(torch.empty(0, 5)).shape == (0,)
    with pytest.raises(RuntimeError):
        pack.flat(torch.zeros(2, 3).T)
