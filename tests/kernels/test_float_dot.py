"""Numbers of float16 and bfloat16 made float32: every one of them, with the processor's instructions and without."""

from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from understudy.kernels import float_dot
from understudy.kernels.vector import FLOATS, HALF, Code, Vector


def all_widened(values: np.ndarray) -> np.ndarray:
    """What `halves_widened` makes of the bits `values`, as it is compiled now."""

    @intrinsic
    def widen(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Code(context, builder)
            made = float_dot.halves_widened(code, code.load(arguments[0], Vector(HALF, 16)))
            assert made.type == FLOATS
            code.store(made, arguments[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @numba.njit
    def run(source: int, target: int, count: int) -> None:
        for i in range(0, count, 16):
            widen(source + 2 * i, target + 4 * i)

    out = np.empty(len(values), np.float32)
    run(values.ctypes.data, out.ctypes.data, len(values))
    return out


@pytest.mark.parametrize("instructions", [True, False])
def test_every_float16(instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not instructions:
        monkeypatch.setattr(float_dot, "has", lambda *names: False)
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected, found = bits.view(np.float16).astype(np.float32), all_widened(bits)
    numbers = ~np.isnan(expected)
    assert numbers.sum() == (1 << 16) - 2 * 1023 and np.isnan(found[~numbers]).all()
    assert (found.view(np.uint32) == expected.view(np.uint32))[numbers].all()
