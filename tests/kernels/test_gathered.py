"""Lines of a cache as float32, by rows and by columns: those asked for, from wherever they lie, and no others."""

import numpy as np
import pytest
import torch

from understudy.kernels.attention import bits_of_slab
from understudy.kernels.gathered import gather
from understudy.small_keys import packed, plain


def slab_of(kind: str, places: int, size: int) -> torch.Tensor:
    numbers = torch.randn(2, 3, places, size, generator=torch.Generator().manual_seed(places))
    return {"float32": lambda: numbers, "bfloat16": numbers.bfloat16, "bytes": lambda: packed(numbers)}[kind]()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "bytes"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("places", "size"), [(256, 64), (100, 20), (90, 16), (256, 40)])
@pytest.mark.parametrize(
    ("start", "first", "last", "prefix"), [(64, 64, 127, 200), (64, 70, 101, 90), (128, 128, 150, 131), (192, 200, 200, 0)]
)
def test_positions_lie_in_their_order(
    kind: str, transposed: bool, places: int, size: int, start: int, first: int, last: int, prefix: int
) -> None:
    slab = slab_of(kind, places, size)
    # off the straight line, positions lie at slots backwards
    tail = np.arange(prefix + 300, prefix, -1)
    block = np.full((size, 64) if transposed else (64, size), 7, np.float32)
    bits = np.empty(0 if kind == "float32" else size, np.uint32)
    gather(bits_of_slab(slab), 1, 2, prefix, tail, (start, first, last), np.bool_(transposed), bits, block)
    found = torch.from_numpy(block.T if transposed else block)
    numbers = plain(slab).float()[1, 2]
    for position in range(start, start + 64):
        slot = position if position < prefix else int(tail[position - prefix])
        expected = numbers[slot % places] if first <= position <= last else torch.full((size,), 7.0)
        assert torch.equal(found[position - start], expected), position
