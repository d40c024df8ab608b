"""The walk of a pass over devices: by blocks links add up, and each Linear waits for the last; in stages pieces follow one
another."""

import pytest

from several import (
    Portions,
    Times,
    best,
    best_in_groups,
    cut,
    in_stages,
    one_group,
    pass_seconds,
    side_by_side,
    staged_seconds,
)

GB = 10**9
TIMES = Times(exact_rate=100 * GB, node_share=0.01, handoff=1e-3, asking=0.0)
EVERYTHING = 10 * GB


def devices(count: int, streamed: float = 0.0, ahead: int = 0) -> list[Portions]:
    """So many devices with equal shares of ten Linears, of which a part streams at 10 GB/s."""
    share = EVERYTHING // 10 // count
    return [Portions([share] * 10, [int(share * streamed)] * 10, ahead, 10 * GB) for _ in range(count)]


def test_shares_are_multiplied_side_by_side() -> None:
    assert pass_seconds(devices(1), 1, TIMES) == pytest.approx(0.1)
    assert pass_seconds(devices(4), 1, TIMES) == pytest.approx(0.1 / 4 + 10 * TIMES.handoff)
    assert pass_seconds(devices(1), 101, TIMES) == pytest.approx(0.2)


def test_links_add_up_and_what_has_come_before_is_not_waited_for() -> None:
    one, two = (pass_seconds(devices(count, 1.0), 1, TIMES) for count in (1, 2))
    assert one == pytest.approx(1.0, rel=0.05) and two == pytest.approx(0.5, rel=0.05)
    assert pass_seconds(devices(1, 1.0, ahead=EVERYTHING // 2), 1, TIMES) == pytest.approx(0.5, rel=0.05)


def test_a_linear_waits_for_the_last_device() -> None:
    fast, slow = devices(2)
    slow = Portions(slow.exact, slow.exact, 0, slow.link)
    assert pass_seconds([fast, slow], 1, TIMES) == pytest.approx(pass_seconds([slow, fast], 1, TIMES), rel=0.1)
    assert pass_seconds([fast, slow], 1, TIMES) > 4 * pass_seconds([fast, fast], 1, TIMES)


def stages(count: int, streamed: float = 0.0, ahead: int = 0) -> list[Portions]:
    """So many devices with equal shares, one Linear each; the first has no head."""
    share = EVERYTHING // count
    return [Portions([share, 0], [int(share * streamed), 0], ahead, 10 * GB) for _ in range(count)]


def test_stages_are_one_after_another_and_pieces_behind_each_other() -> None:
    handoffs = 4 * TIMES.handoff
    assert staged_seconds(stages(4), [1], TIMES) == pytest.approx(0.1 + handoffs)
    # (stages + pieces - 1) stage times: of each device's, and of the nodes of each piece.
    assert staged_seconds(stages(4), [1] * 5, TIMES) == pytest.approx((4 + 5 - 1) * 0.1 / 4 + handoffs, rel=0.1)
    assert staged_seconds(stages(4), [101], TIMES) == pytest.approx(0.2 + handoffs)
    assert staged_seconds(stages(2), [501, 500], TIMES) < staged_seconds(stages(2), [1001], TIMES) == pytest.approx(1.1, rel=0.05)


def test_stages_wait_for_what_has_not_come_and_the_head_is_last() -> None:
    assert staged_seconds(stages(2, 1.0, ahead=EVERYTHING // 4), [1], TIMES) == pytest.approx(0.5, rel=0.05)
    headed = [Portions([GB, 9 * GB], [0, 0], 0, GB), Portions([GB, 0], [0, 0], 0, GB)]
    assert staged_seconds(headed, [1], TIMES) == pytest.approx(0.11, rel=0.05)
    assert in_stages(stages(2), 4000, TIMES) < staged_seconds(stages(2), [4000], TIMES)
    assert sum(cut(4000, 8)) == 4000 and len(cut(4000, 8)) > 4 and cut(3, 8) == [3]


def test_groups_keep_all_devices_busy() -> None:
    """Two groups take little more than one; so many that each device always has one take what the busiest device has to do."""
    work = [(place, 1.0, 0.0) for place in range(4)] * 3
    assert side_by_side([work]) == 12
    assert side_by_side([work] * 2) == 13 and side_by_side([work] * 4) == 15
    assert side_by_side([work] * 8) >= 8 * 3
    assert side_by_side([[(0, 2.0, 0.0)], [(0, 1.0, 0.0)], [(1, 5.0, 0.0)]]) == 5


def test_the_host_asks_for_one_group_at_a_time() -> None:
    """Where it needs as long to ask as a device takes, groups gain nothing; for a tenth of that they do."""
    slow, quick = ([(place, 1.0, asking) for place in range(4)] * 3 for asking in (1.0, 0.1))
    assert side_by_side([slow]) == 12 and side_by_side([slow] * 2) == 24
    assert side_by_side([quick]) == 12 and side_by_side([quick] * 2) < 14
    assert side_by_side([[(0, 1.0, 3.0)]]) == 3, "what was not asked for is not done"
    asked = Times(100 * GB, 0.0, handoff=0.0, asking=1.0)
    assert in_stages(stages(4), 1, asked) == 4.0 and in_stages(stages(4), 1, Times(100 * GB, 0.0, handoff=0.0, asking=0.0)) < 1


def test_wide_levels_take_what_their_products_took() -> None:
    """As long with 16 nodes as with one, and three times as long with 64."""
    assert Times().wider(1) == Times().wider(16) == 1.0 and Times().wider(64) == pytest.approx(443 / 149)


def test_groups_pay_where_nodes_take_time() -> None:
    """One group is what `best` counts; more of them only save what rows add to each other's levels and passes."""
    four = stages(4)
    copy = EVERYTHING // 4
    alone = sum(seconds for _, seconds, _ in one_group(four, copy, 1, 5, 1, TIMES))
    assert alone == pytest.approx(5 * (copy / TIMES.copy_rate + 4 * TIMES.handoff) + in_stages(four, 6, TIMES), rel=0.15)
    together = best(four, copy, 1, 64, TIMES, in_stages)[0]
    assert best_in_groups(four, copy, 1, 64, TIMES, several=1)[0] == pytest.approx(together, rel=0.1)
    free, dear = (
        Times(100 * GB, share, handoff=1e-4, level_nodes=nodes, level_share=1.0, asking=0.0)
        for share, nodes in ((0.0, 1000), (0.05, 1))
    )
    assert best_in_groups(four, copy, 8, 512, free)[0] < 1.05 * best(four, copy, 8, 512, free, in_stages)[0]
    assert best_in_groups(four, copy, 8, 512, dear)[0] > 1.5 * best(four, copy, 8, 512, dear, in_stages)[0]
