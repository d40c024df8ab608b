"""Numbers in memory, bfloat16 or float32, as float32 and back: for use inside kernels."""

from typing import Any

import numpy as np
from numba.np import numpy_support

from .compiled import compiled, float_of, word_of
from .team import float32_at, uint8_at, uint16_at

# adding and taking away 1.5 * 2**23 rounds a float32 to the nearest integer
ROUNDING = 12582912.0
carray: Any = numpy_support.carray


@compiled
def read(address: int, itemsize: int, out: Any) -> None:
    """Fill `out`, float32, with the numbers at `address`; itemsize: their bytes, 2 (bfloat16) or 4 (float32)."""
    count = out.shape[0]
    if itemsize == 2:
        halves = carray(uint16_at(address), count)
        for k in range(count):
            out[k] = float_of(np.int64(halves[k]) << 16)
    else:
        # by a loop: copying arrays brings seconds of compiling with it
        floats = carray(float32_at(address), count)
        for k in range(count):
            out[k] = floats[k]


@compiled
def write(numbers: Any, address: int, itemsize: int) -> None:
    """Put `numbers`, float32, at `address`, rounded to the nearest bfloat16 where itemsize is 2."""
    count = numbers.shape[0]
    if itemsize == 2:
        halves = carray(uint16_at(address), count)
        for k in range(count):
            word = word_of(numbers[k])
            halves[k] = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    else:
        floats = carray(float32_at(address), count)
        for k in range(count):
            floats[k] = numbers[k]


@compiled
def padded(source: int, count: int, into: int, width: int) -> None:
    """Copy `count` float32 numbers, and put zeros behind them up to `width`."""
    numbers, copied = carray(float32_at(source), count), carray(float32_at(into), width)
    for i in range(count):
        copied[i] = numbers[i]
    for i in range(count, width):
        copied[i] = np.float32(0)


@compiled
def multiple(number: int, of: int) -> Any:
    """`number`, or the next multiple of `of`."""
    return (number + of - 1) // of * of


@compiled
def squares(line: Any) -> Any:
    """The sum of the squares of float32 numbers: those of every sixteenth, then of these."""
    sums = np.zeros(16, np.float32)
    whole = line.shape[0] // 16 * 16
    for k in range(0, whole, 16):
        for j in range(16):
            sums[j] += line[k + j] * line[k + j]
    total = np.float32(0)
    for j in range(16):
        total += sums[j]
    for k in range(whole, line.shape[0]):
        total += line[k] * line[k]
    return total


@compiled
def nearest(number: Any) -> Any:
    """The nearest integer to a float32, as one."""
    return (number + np.float32(ROUNDING)) - np.float32(ROUNDING)


@compiled
def write_codes(numbers: Any, address: int) -> None:
    """Put `numbers`, float32, at `address` as a line of `small_keys`: a byte for each, and their step."""
    size = numbers.shape[0]
    line = carray(uint8_at(address), size + 4)
    largest = np.float32(0)
    for k in range(size):
        largest = max(largest, abs(numbers[k]))
    step = max(largest / np.float32(127), np.float32(1e-30))
    for k in range(size):
        line[k] = np.int32(nearest(numbers[k] / step)) & 255
    word = word_of(step)
    for c in range(4):
        line[size + c] = word >> (8 * c) & 255


@compiled
def step_of(line: Any, size: int) -> Any:
    """The step, float32, of a line of `small_keys` with `size` codes."""
    word = np.int64(0)
    for c in range(4):
        word |= np.int64(line[size + c]) << (8 * c)
    return float_of(word)
