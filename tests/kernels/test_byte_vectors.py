"""Numbers of 16 bits become bytes and numbers again, in the order of their rows; matrices of bits are turned."""

from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from understudy.kernels.byte_vectors import ByteVectors
from understudy.kernels.residual_packed import widest

WIDTHS = (32, 64) if widest() == 64 else (32,)


def there_and_back(width: int) -> Any:
    """What packs `width` numbers of 16 bits, of which each `width` / 2 are a vector, at `source` to bytes at `packed`, makes
    numbers of them again at `target`, in the order of the bytes, and turns the bytes' matrices at `turned`."""

    @intrinsic
    def made(typing: Any, source: Any, packed: Any, target: Any, turned: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, packed, target, turned = arguments
            code = ByteVectors(context, builder, 4, width)
            pair = [code.load(code.at(source, width * i), code.halves) for i in range(2)]
            found = code.packed(pair)
            code.store(found, packed)
            back = code.unpacked(found, code.all(code.run, 0))
            for part, numbers in enumerate(code.natural(back)):
                code.store(numbers, code.at(target, width * part))
            code.store(code.transposed(found), turned)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    call: Any = made

    @numba.njit
    def run(source: Any, packed: Any, target: Any, turned: Any) -> None:
        call(source.ctypes.data, packed.ctypes.data, target.ctypes.data, turned.ctypes.data)

    return run


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_become_bytes_and_back(width: int) -> None:
    generator = np.random.default_rng(width)
    numbers = generator.integers(-300, 300, width).astype(np.int16)
    packed, target = np.zeros(width, np.int8), np.zeros(width, np.uint16)
    turned = np.zeros(width, np.uint8)
    there_and_back(width)(numbers, packed, target, turned)
    first, second = numbers[: width // 2], numbers[width // 2 :]
    order = [each for lane in range(0, width // 2, 8) for half in (first, second) for each in half[lane : lane + 8]]
    assert packed.tolist() == np.clip(order, -128, 127).tolist()
    assert target.tolist() == packed.view(np.uint8).tolist()
    bits = np.unpackbits(packed.view(np.uint8).reshape(-1, 8, 1), axis=2, bitorder="little")
    expected = np.packbits(bits.transpose(0, 2, 1), axis=2, bitorder="little").reshape(-1)
    # the instruction that turns matrices counts their lines from below
    flipped = np.packbits(bits[:, ::-1].transpose(0, 2, 1), axis=2, bitorder="little").reshape(-1)
    assert turned.tolist() in (expected.tolist(), flipped.tolist())
