"""What kernels find on a node's path: nodes of the same launch, and records, wherever they lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from tests.test_tree import trees
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
import triton
import triton.language as tl

from understudy.kernels.gpu.node_paths import path_of, row_of, tail_of

PLACES = 90


@triton.jit
def _paths(rows, slots, positions, prefixes, tail, out, width, places, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    node = tl.program_id(0).to(tl.int64)
    row, slot, position = tl.load(rows + node), tl.load(slots + node), tl.load(positions + node)
    p = tl.arange(0, SPAN)
    seen, fresh, index, place = path_of(p, node, row, slot, position, prefixes, tail, width, rows, slots, places, False)
    tl.store(out + node * SPAN + p, tl.where(seen, tl.where(fresh, -1 - index, place), 1 << 20))


@triton.jit
def _rows(rows, out, count):  # type: ignore[no-untyped-def]
    mine = tl.program_id(0).to(tl.int64)
    row, first, end = row_of(mine, rows, count)
    tl.store(out + row * 2, first)
    tl.store(out + row * 2 + 1, end)


def paths(nodes: Nodes, span: int) -> Tensor:
    there = nodes.to(DEVICE)
    tail, width = tail_of(there)
    out = torch.empty((len(nodes), span), dtype=torch.int64, device=DEVICE)
    _paths[(len(nodes),)](
        there.rows, there.slots, there.positions, there.prefix, tail, out, width, PLACES, SPAN=span, enable_fp_fusion=False
    )
    return out.cpu()


@settings(max_examples=15, deadline=None)
@given(trees(10), trees(10), st.integers(0, 60), st.integers(0, 9))
def test_a_path_is_that_of_the_tree(tree: TokenTree, other: TokenTree, length: int, first: int) -> None:
    """Nodes before the `first` are of an earlier launch."""
    start = min(first, len(tree) - 1)
    nodes = Nodes.join([Nodes.of(other, 2, 5), Nodes.of(tree, 0, length, start)])
    found = paths(nodes, 128)
    for node in range(len(nodes)):
        row, begin = int(nodes.rows[node]), (length + start if int(nodes.rows[node]) == 0 else 5)
        offset = 0 if row == 2 else len(other)
        slots = nodes.slots_in_order(node).tolist()
        wanted = [slot % PLACES if slot < begin else -1 - (offset + slot - begin) for slot in slots]
        assert found[node, : len(slots)].tolist() == wanted and (found[node, len(slots) :] == 1 << 20).all()


def test_where_the_nodes_of_a_row_begin_and_end() -> None:
    rows = torch.tensor([2] * 70 + [0] * 3 + [3]).to(DEVICE)
    out = torch.zeros(4, 2, dtype=torch.int64, device=DEVICE)
    _rows[(4,)](rows, out, len(rows), enable_fp_fusion=False)
    assert out[[0, 2, 3]].tolist() == [[70, 73], [0, 70], [73, 74]] and out[1, 0] == out[1, 1]
