"""The short names write the instructions they say, and a machine's features are those numba compiles for."""

from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from understudy.kernels.vector import BYTE, WORD, Code, Vector, prefetch


@intrinsic
def _mixed(typing: Any, source: Any, target: Any, number: Any) -> Any:
    """Elements 3, 2, 1, 0 of `source`, then of `number` in every place, added to 10, 11, 12, 13."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, four = Code(context, builder), Vector(WORD, 4)
        source, target, number = arguments
        first = code.pick(code.load(source, four), code.load(source, four), [3, 2, 1, 0])
        many = code.spread(builder.trunc(number, WORD), 4)
        code.store(first, target)
        code.store(builder.add(many, code.constant(four, [10, 11, 12, 13])), code.at(target, 16))
        code.store(code.all(Vector(BYTE, 4), 9), code.at(target, 32))
        return code.ours(_twice, number)

    return types.int64(types.int64, types.int64, types.int64), generate


def _twice(number: int) -> int:
    return number * 2


@numba.njit
def mixed(source: int, target: int, number: int) -> int:
    return _mixed(source, target, number)  # type: ignore[no-any-return]


def test_vectors_hold_what_the_words_say() -> None:
    source, target = np.arange(5, 9, dtype=np.int32), np.zeros(9, np.int32)
    assert mixed(source.ctypes.data, target.ctypes.data, 100) == 200
    assert target[:8].tolist() == [8, 7, 6, 5, 110, 111, 112, 113]
    assert target[8:].view(np.uint8).tolist() == [9] * 4


@numba.njit
def fetched(address: int, lines: int) -> int:
    prefetch(address, lines)
    return lines


@pytest.mark.parametrize(("address", "lines"), [(0, 0), (0, 3), (-64, 2), (1 << 62, 1)])
def test_any_address_may_be_asked_of_memory(address: int, lines: int) -> None:
    assert fetched(address, lines) == lines
