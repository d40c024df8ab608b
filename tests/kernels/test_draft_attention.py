"""A draft level's attention is attention: what each node sees, to rounding, for any rows, trees and windows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels.attention import AttentionSpec, attend
from understudy.kernels.draft_attention import LevelAttention
from understudy.tree import Nodes, TokenTree


@st.composite
def rows_of_nodes(draw: st.DrawFn) -> Nodes:
    """Trees of one to three rows, each after a text of its own."""
    several = []
    for row in range(draw(st.integers(1, 3))):
        parents = [-1, *(draw(st.integers(0, i)) for i in range(draw(st.integers(0, 9))))]
        several.append(Nodes.of(TokenTree.of([0] * len(parents), parents), row, draw(st.integers(0, 40))))
    return Nodes.join(several)


@settings(max_examples=60, deadline=None)
@given(
    nodes=rows_of_nodes(), window=st.sampled_from([0, 1, 7, 30]), softcap=st.sampled_from([0.0, 5.0]), group=st.integers(1, 3),
    sinks=st.booleans(), size=st.sampled_from([8, 16]),
)  # fmt: skip
def test_it_is_the_exact_attention_to_rounding(
    nodes: Nodes, window: int, softcap: float, group: int, sinks: bool, size: int
) -> None:
    torch.manual_seed(len(nodes))
    keys, values = torch.randn(3, 2, 64, 16), torch.randn(3, 2, 64, size)
    query = torch.randn(len(nodes), 2 * group, 16)
    spec = AttentionSpec(0.3, window, softcap, torch.randn(2 * group) if sinks else None)
    found = LevelAttention(nodes)(query, keys, values, spec)
    assert torch.allclose(found, attend(query, keys, values, nodes, spec), atol=1e-5)


def test_what_nodes_see_is_worked_out_once_for_each_window() -> None:
    nodes = Nodes.of(TokenTree.of([0, 0, 0], [-1, 0, 0]), 0, 5)
    attention, query = LevelAttention(nodes), torch.randn(3, 2, 16)
    keys, values = torch.randn(2, 1, 2, 64, 16)
    for window in (0, 4, 0, 4):
        attention(query, keys, values, AttentionSpec(0.3, window))
    assert {key[:2] for key in attention.masks} == {(0, 0), (0, 4)} and len(attention.masks) == 2


def test_a_single_node_that_sees_all_needs_no_mask() -> None:
    attention = LevelAttention(Nodes.of(TokenTree.chain([7]), 0, 12))
    keys, values = torch.randn(2, 1, 2, 64, 16)
    attention(torch.randn(1, 2, 16), keys, values, AttentionSpec(0.3))
    assert list(attention.masks.values()) == [(13, None)]
