"""The short convolution on a GPU, here in Triton's interpreter: the bits of torch's, for trees, prompts and levels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from tests.test_tree import trees
from understudy.kernels.recurrence import convolve_anywhere, fold_anywhere
from understudy.recurrent import RecurrentShape, RecurrentState, Room
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
from understudy.kernels.gpu import convolution


def opened(channels: int, taps: int, dtype: torch.dtype) -> RecurrentState:
    state = RecurrentState(RecurrentShape(channels, taps), Room(2, 64, dtype, DEVICE), fold_anywhere)
    state.inputs.copy_(torch.randn(state.inputs.shape))
    return state


def both(x: Tensor, weight: Tensor, bias: Tensor | None, nodes: Nodes, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """What the kernel gives and leaves behind, and what torch does."""
    found = []
    given = [None if part is None else part.to(DEVICE) for part in (x, weight, bias)]
    for convolve in (convolution.convolve, convolve_anywhere):
        torch.manual_seed(7)
        state = opened(x.shape[1], weight.shape[1], dtype)
        found.append((convolve(*given, state, nodes.to(DEVICE)), state.inputs))  # type: ignore[arg-type]
    return found


@settings(max_examples=12, deadline=None)
@given(
    trees(12), st.integers(0, 210), st.sampled_from([(5, 4), (600, 3), (1100, 4)]), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_convolution_along_each_path(
    tree: TokenTree, length: int, sizes: tuple[int, int], biased: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([0] * 3), 0, 0)])
    weight, bias = torch.randn(sizes).to(dtype), torch.randn(sizes[0]).to(dtype) if biased else None
    (mine, records), (theirs, wanted) = both(torch.randn(len(nodes), sizes[0]).to(dtype), weight, bias, nodes, dtype)
    assert torch.equal(records, wanted) and mine.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(mine, theirs)
    else:
        # the interpreter cuts numbers off where a GPU rounds them
        torch.testing.assert_close(mine, theirs, atol=0, rtol=1e-2)


def test_rows_may_lie_apart_from_each_other() -> None:
    """As a part of what one Linear gives."""
    nodes = Nodes.of(TokenTree.chain([0] * 6), 0, 3)
    wide, weight = torch.randn(6, 21), torch.randn(9, 4)
    (mine, records), (theirs, wanted) = both(wide[:, 5:14], weight, None, nodes, torch.float32)
    assert torch.equal(mine, theirs) and torch.equal(records, wanted)


def test_a_level_reads_no_other_node_of_it() -> None:
    """Also where several lie in one slot, as those do that a search leaves unused."""
    level = Nodes.of(TokenTree.of([0] * 5, [-1, 0, 0, 0, 0]), 0, 9)[1:]
    level.slots[2:] = 60
    level.positions[2:] = 0
    level.prefix[2:] = 1
    x, weight = torch.randn(4, 8), torch.randn(8, 3)
    (mine, _), _ = both(x, weight, None, level, torch.float32)
    for node in range(4):
        (alone, _), _ = both(x[node : node + 1], weight, None, level[node : node + 1], torch.float32)
        assert torch.equal(alone[0], mine[node])
