"""The format of a residual, read by plain Python that knows nothing but its description: Stores on disk stay readable."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from understudy.kernels.bins import DENSE, MOST, WIDER
from understudy.kernels.pack import block, unpack
from understudy.kernels.residual import Residual, encode
from understudy.quantizers import quantizer

SIGN = 0x8000


def test_the_numbers_of_the_format_are_those_of_the_stores_there_are() -> None:
    assert (DENSE, MOST, WIDER) == ({2: 7, 3: 6, 4: 5, 6: 4, 8: 3}, 10, {2: 112, 3: 48, 4: 0, 6: 0, 8: 0})


@dataclass(frozen=True)
class Bin:
    """The bfloat16 patterns that one code stands for: magnitudes at both ends, the sign of the upper end."""

    low: int
    high: int
    far: int
    most: int
    sign: int
    straddles: bool

    @classmethod
    def of(cls, code: int, bits: int, scale: np.float32, zero: np.float32) -> "Bin":
        centre = 1 << bits - 1
        product = np.float32(code) * scale
        ends = (product + (zero - np.float32(centre + half) * scale) for half in (0.5, -0.5))
        bottom, top = (int(np.float32(end).view(np.uint32)) >> 16 for end in ends)
        low, high, sign = bottom & ~SIGN, top & ~SIGN, top & SIGN
        outermost = code == (0 if sign else (1 << bits) - 1)
        larger, smaller = max(low, high) + WIDER[bits] * outermost, min(low, high)
        straddles = bool((bottom ^ top) & SIGN)
        return cls(low, high, larger, (1 << MOST) - 1 if straddles else larger - smaller + 1, sign, straddles)


class Stream:
    """Bits, one after another."""

    def __init__(self, data: np.ndarray) -> None:
        self.bits = np.unpackbits(data, bitorder="little")
        self.place = 0

    def next(self) -> int:
        self.place += 1
        return int(self.bits[self.place - 1])


def column_of(bins: list[Bin], dense: np.ndarray, stream: Stream) -> list[int]:
    """The bit patterns of a column's 64 weights."""
    bits = len(dense) // 8
    sides = [stream.next() if one.straddles else 0 for one in bins]
    nibbles = 4 if bits >= 4 else 0
    places = [int(dense[row % 32]) >> row // 32 * 4 & 15 if nibbles else 0 for row in range(64)]
    for bit in range(nibbles, bits):
        plane = dense[8 * bit :][:8]
        places = [place | (int(plane[row // 8]) >> row % 8 & 1) << bit for row, place in enumerate(places)]
    for bit in range(bits, MOST):
        places = [place | (stream.next() if one.most >= 1 << bit else 0) << bit for one, place in zip(bins, places, strict=True)]
    found = []
    for one, side, place in zip(bins, sides, places, strict=True):
        end = (one.low if side else one.high) if one.straddles else one.far
        found.append((end + 1 - place) & 0xFFFF | one.sign ^ SIGN * side)
    return found


def plainly(residual: Residual, codes: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """The bit patterns of one block [K, 64], read in Python."""
    columns, width = codes.shape[1:]
    bits = width // 8
    group = columns // len(scales) if bits < 8 else 128
    values, dense = (unpack(codes, 64).T if bits < 8 else codes[0]).numpy(), residual.dense.numpy().reshape(columns, -1)
    steps, table = scales.float().numpy(), residual.table.to(torch.int64)
    stream, found = Stream(residual.stream.numpy()), np.zeros((columns, 64), np.int64)
    for k in range(columns):
        if k % group == 0:
            assert stream.place == table[k // group, 0], "a tile says where its bits begin"
        rows = zip(values[k], steps[k * len(scales) // columns], strict=True)
        bins = [Bin.of(int(code), bits, np.float32(scale), np.float32(zero)) for code, (scale, zero) in rows]
        found[k] = column_of(bins, dense[k], stream)
    for g in range(columns // group):
        for place, weight in residual.exceptions[table[g, 1] : table[g + 1, 1]].to(torch.int64).tolist():
            found[g * group + place // 64, place % 64] = weight
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("size", [0.02, 3.0])
def test_plain_python_reads_what_was_written(bits: int, size: float) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(64, 256, generator=generator) * size
    weight[3, 5], weight[9, 70], weight[2] = float("nan"), 1e9, -0.0
    weight = weight.to(torch.bfloat16)
    made = quantizer(f"int{bits}").quantize(weight)
    residual = encode(block(weight), made["codes"], made["scales"])
    assert 0 < len(residual.exceptions) < 64 * 256 // 8
    words = block(weight)[0].contiguous().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(plainly(residual, made["codes"], made["scales"]), words)
