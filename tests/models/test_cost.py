"""What a pass takes: learned from passes of all sizes."""

import pytest

from understudy.models.cost import PassCost


def test_nodes_cost_what_passes_of_several_sizes_say() -> None:
    cost = PassCost()
    assert cost.share(8) == 0.0
    cost.learn(32, 1.0, 0.0)
    assert cost.share(32) == pytest.approx(1 / 64), "one pass says little: it is taken to cost what so many nodes do"
    for nodes in (20, 40, 60, 80) * 5:
        cost.learn(nodes, 0.5 + 0.02 * nodes, 0.0)
    assert cost.extra(30, 10) == pytest.approx(0.2, rel=0.05) and cost.seconds(10) == pytest.approx(0.7, rel=0.1)


def test_nodes_are_free_while_the_link_is_slower() -> None:
    cost = PassCost()
    for nodes in (20, 40, 60, 80) * 5:
        cost.learn(nodes, 0.02 * nodes, 2.0 - 0.02 * nodes)
    assert cost.extra(10, 80) == pytest.approx(0.0, abs=1e-3)
    assert cost.extra(100, 50) == pytest.approx(1.0, rel=0.1)


def test_a_tile_is_paid_for_by_all_its_nodes() -> None:
    cost = PassCost(unit=32)
    for nodes in (10, 40, 70, 100) * 5:
        cost.learn(nodes, 0.1 * -(-nodes // 32), 0.0)
    assert cost.extra(10, 20) == 0.0, "the tile is computed whole anyway"
    assert cost.extra(32, 1) == pytest.approx(0.1, rel=0.05) and cost.share(32) == pytest.approx(0.1 / 32, rel=0.05)
