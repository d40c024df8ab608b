"""Keys and values in pairs, as tiles are multiplied: every number in its place, zeros for what is not seen."""

import numpy as np
import pytest
import torch

from understudy.kernels.attention import bits_of_slab
from understudy.kernels.paired import locate, pair_keys, pair_values
from understudy.kernels.running_softmax import lines


class Seen:
    """Positions 64 to 127 of a tree's node, of which it sees those within `limits`."""

    def __init__(self, size: int, limits: tuple[int, int]) -> None:
        self.slab = torch.randn(2, 2, 100, size, generator=torch.Generator().manual_seed(size)).bfloat16()
        self.zeros = np.zeros(size, np.uint16)
        # addresses of what lies there, and the numbers [64, size]
        self.sources, self.expected = np.empty(64, np.int64), torch.zeros(64, size)
        tail = np.arange(400, 300, -1)
        locate(bits_of_slab(self.slab), 1, 0, 90, tail, 64, limits, self.zeros.ctypes.data, self.sources)
        for position in range(limits[0], limits[1] + 1):
            slot = position if position < 90 else int(tail[position - 90])
            self.expected[position - 64] = self.slab[1, 0, slot % 100].float()


def floats(halves: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16).float()


@pytest.mark.parametrize("limits", [(64, 127), (70, 101), (64, 64), (127, 127)])
@pytest.mark.parametrize("size", [64, 128, 24, 20, 6])
def test_keys_are_columns_two_numbers_at_a_time(size: int, limits: tuple[int, int]) -> None:
    seen = Seen(size, limits)
    block = lines(size // 2, 64).view(np.uint16)
    pair_keys(seen.sources, size, block)
    # [pairs, keys, two] -> [keys, numbers]
    assert torch.equal(floats(block).view(size // 2, 64, 2).permute(1, 0, 2).reshape(64, size), seen.expected)


@pytest.mark.parametrize("limits", [(64, 127), (70, 101), (64, 64), (127, 127)])
@pytest.mark.parametrize("size", [64, 128, 80, 20, 6])
def test_values_are_rows_two_at_a_time(size: int, limits: tuple[int, int]) -> None:
    seen = Seen(size, limits)
    pieces = -(-size // 64)
    block = lines(pieces * 32, 64).view(np.uint16).reshape(pieces, 64 * 64)
    pair_values(seen.sources, size, block)
    # [pieces, pairs, outputs, two] -> [values, numbers]
    found = floats(block).view(pieces, 32, 64, 2).permute(1, 3, 0, 2).reshape(64, pieces * 64)
    assert torch.equal(found[:, :size], seen.expected) and not bool(found[:, size:].any())
