"""Bits are taken as they were appended, for any masks, from any place in the stream."""

import random

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from numba.extending import intrinsic

from understudy.kernels.bit_stream import _deposit, _extract, append_bits, take_bits
from understudy.kernels.vector import Code


@intrinsic
def _append(typing, stream, place, bits, mask):
    def generate(context, builder, signature, arguments):
        return append_bits(Code(context, builder), *arguments)

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def _take(typing, stream, place, mask, into):
    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        bits, after = take_bits(code, *arguments[:3])
        code.store(bits, arguments[3])
        return after

    return types.int64(*[types.int64] * 4), generate


@numba.njit
def append(stream, place, bits, mask):
    return _append(stream, place, bits, mask)


@numba.njit
def take(stream, place, mask, into):
    return _take(stream, place, mask, into)


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


words = st.integers(0, 2**64 - 1)


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(st.tuples(words, words), max_size=20), start=st.integers(0, 20))
def test_what_is_appended_is_taken(pieces: list[tuple[int, int]], start: int) -> None:
    stream = np.zeros(8 * len(pieces) + 32, np.uint8)
    found = np.zeros(1, np.uint64)
    place = start
    for bits, mask in pieces:
        place = append(stream.ctypes.data, place, signed(bits), signed(mask))
    assert place == start + sum(mask.bit_count() for _, mask in pieces)
    place = start
    for bits, mask in pieces:
        place = take(stream.ctypes.data, place, signed(mask), found.ctypes.data)
        assert int(found[0]) == bits & mask


@pytest.mark.parametrize("seed", range(20))
def test_the_portable_loops_spread_and_gather(seed: int) -> None:
    chance = random.Random(seed)
    bits, mask = chance.getrandbits(63), chance.getrandbits(63)
    rows = [row for row in range(64) if mask >> row & 1]
    assert _extract(bits, mask) == sum((bits >> row & 1) << i for i, row in enumerate(rows))
    assert _deposit(bits, mask) == sum((bits >> i & 1) << row for i, row in enumerate(rows))
