"""Float16 weights come apart into bfloat16 and three bits, and back: all there are."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.kernels import residual
from understudy.kernels.pack import block, columns_of
from understudy.kernels.trailing import PITCH, TRAILING, apart, lay_joined, narrow_columns
from understudy.quantizers import quantizer


def every() -> Tensor:
    """All float16 there are, each once."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).view(2, 512, 64)


def joined(brains: Tensor, own: Tensor | None) -> Tensor:
    """What `narrow_columns` makes of copies of them."""
    made = brains.clone()
    narrow_columns(made.data_ptr(), 0 if own is None else own.data_ptr(), made.numel() // 64)
    return made.view(torch.float16)


def words(weights: Tensor) -> Tensor:
    """The bits of float32 of float16 weights; of NaN the sign, and those behind the point in their places."""
    bits = weights.view(torch.int16).long() & 0xFFFF
    told = weights.float().view(torch.int32).long() & 0xFFFFFFFF
    nan = (bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13
    return torch.where(weights.isnan(), nan, told)


def test_every_float16_comes_apart_and_back() -> None:
    brains, own = apart(every())
    assert own is not None and own.shape == (2, 512, PITCH)
    codes = columns_of(own)
    assert torch.equal(brains.view(torch.int16).long() & 0xFFFF, words(every()) >> 16)
    assert torch.equal(codes.long(), words(every()) >> 13 & (1 << TRAILING) - 1)
    assert not (words(every()) & (1 << 13) - 1).any(), "nothing is left of any"
    assert torch.equal(joined(brains, own).view(torch.int16), every().view(torch.int16))


def test_every_float16_as_it_is_multiplied() -> None:
    @numba.njit
    def run(brains: int, own: int, target: int, columns: int) -> None:
        for k in range(columns):
            lay_joined(brains + 128 * k, own + PITCH * k, target + 256 * k)

    brains, own = apart(every())
    assert own is not None
    room = np.empty(every().numel() + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    out = room[start : start + every().numel()]
    run(brains.data_ptr(), own.data_ptr(), out.ctypes.data, every().numel() // 64)
    assert torch.equal(torch.from_numpy(out.view(np.int32).astype(np.int64)) & 0xFFFFFFFF, words(every()).view(-1))


def test_what_was_bfloat16_has_no_trailing_bits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128).to(torch.bfloat16)
    brains, own = apart(block(weight).half())
    assert own is None and torch.equal(brains, block(weight))
    assert torch.equal(joined(brains, None), block(weight).half())
    changed = block(weight).half()
    changed[0, 77, 3] = torch.tensor(0.25 + 2**-12).half()
    brains, own = apart(changed)
    assert own is not None and int((columns_of(own) != 0).sum()) == 1
    assert torch.equal(joined(brains, own), changed)


def test_other_types_have_other_bits() -> None:
    with pytest.raises(AssertionError, match=r"torch\.bfloat16"):
        apart(torch.zeros(1, 1, 64, dtype=torch.bfloat16))


def test_residuals_are_of_the_upper_bits() -> None:
    """Beside a copy of which no code is right too: then all are exceptions."""
    for weight in (torch.randn(128, 64) * 0.02, torch.randn(128, 64) * 1e4):
        blocks = block(weight.clamp(-6e4, 6e4).half())
        copy = quantizer("int4").quantize(torch.randn(128, 64) * 0.02)
        made = residual.encode(blocks, copy["codes"], copy["scales"])
        plain = residual.encode(apart(blocks)[0], copy["codes"], copy["scales"])
        assert torch.equal(made.stream, plain.stream) and torch.equal(made.exceptions, plain.exceptions)
        assert made.trailing is not None and plain.trailing is None
        out = torch.empty_like(blocks)
        residual.decode(made, copy["codes"], copy["scales"], out)
        assert torch.equal(out.view(torch.int16), blocks.view(torch.int16))
