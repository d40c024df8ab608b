"""Rows find their experts and their way back, also where a router leaves some of them out."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from understudy.models.mixtures.routed import Routed, product, rows_in

COLUMNS, OUTPUTS = 8, 4


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """To which of how many experts each row goes; a number that none has says that it goes to fewer."""
    experts, rows = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    count = draw(st.integers(1, experts))
    sentinels = st.lists(st.booleans(), min_size=count, max_size=count)
    chosen = []
    for _ in range(rows):
        own = draw(st.permutations(range(experts)))[:count]
        chosen.append([experts if left else expert for expert, left in zip(own, draw(sentinels), strict=True)])
    return torch.tensor(chosen), experts


@given(choices())
def test_every_row_stands_once_for_each_of_its_experts(drawn: tuple[Tensor, int]) -> None:
    chosen, experts = drawn
    hidden = torch.randn(len(chosen), COLUMNS)
    routed, order, places = Routed.of(hidden, chosen, experts)
    assert routed.experts.tolist() == sorted(expert for expert in chosen.flatten().tolist() if expert < experts)
    assert torch.equal(chosen.flatten()[order], routed.experts)
    assert torch.equal(hidden[order // chosen.shape[1]], routed.rows)
    assert routed.counts(experts) == [int((chosen == expert).sum()) for expert in range(experts)]
    for node, own in enumerate(places.tolist()):
        given_to = sorted(expert for expert in chosen[node].tolist() if expert < experts)
        assert own == sorted(own) and [int(routed.experts[place]) for place in own if place < len(order)] == given_to
        assert own.count(len(order)) == chosen.shape[1] - len(given_to), "what is left out is past the last row"


@given(choices())
def test_the_product_multiplies_each_row_by_the_matrix_of_its_expert(drawn: tuple[Tensor, int]) -> None:
    chosen, experts = drawn
    weight = torch.randn(experts, OUTPUTS, COLUMNS, dtype=torch.float64)
    routed, _, _ = Routed.of(torch.randn(len(chosen), COLUMNS, dtype=torch.float64), chosen, experts)
    found = product(routed, weight)
    assert found.shape == (len(routed.rows), OUTPUTS)
    for row, expert, y in zip(routed.rows, routed.experts, found, strict=True):
        assert torch.allclose(y, weight[expert] @ row)
    assert routed.with_rows(found).experts is routed.experts
    dense = torch.randn(3, COLUMNS, dtype=torch.float64)
    assert torch.equal(product(dense, weight[0]), dense @ weight[0].T)


def test_rows_of_tiles_without_their_padding() -> None:
    tiles = [torch.ones(2, 3), torch.full((2, 3), 2.0)]
    assert rows_in(tiles, 3).tolist() == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    routed = [Routed(tile, torch.tensor([0, 1])) for tile in tiles]
    assert torch.equal(rows_in(routed, 1), torch.cat(tiles)), "routed rows have none"
