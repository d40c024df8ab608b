"""Named arrays in one stretch of memory: one copy carries all of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from understudy.drafters.packed_tensors import PackedTensors

SHAPES = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple))


def garbage(nbytes: int) -> Tensor:
    return torch.full((nbytes,), 0xA5, dtype=torch.uint8)


@given(SHAPES, SHAPES.map(lambda shapes: {name.upper(): shape for name, shape in shapes.items()}))
def test_one_copy_carries_every_array_and_none_overlap(
    integers: dict[str, tuple[int, ...]], reals: dict[str, tuple[int, ...]]
) -> None:
    packed = PackedTensors.of(integers, reals, garbage)
    for value, (name, shape) in enumerate({**integers, **reals}.items()):
        assert packed[name].shape == shape
        assert packed[name].dtype == (torch.int64 if name in integers else torch.float64)
        packed[name].fill_(value + 1)
    other = packed.alike(garbage)
    other.memory.copy_(packed.memory)
    for value, name in enumerate({**integers, **reals}):
        assert bool((packed[name] == value + 1).all()), "written over by another array"
        assert torch.equal(other[name], packed[name])
    assert packed.memory.nbytes == packed.integers.nbytes + packed.reals.nbytes
