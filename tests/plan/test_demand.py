"""What levels and a second model take is counted as it is laid out."""

from dataclasses import replace

from understudy.plan.demand import CACHE_SHARE, MOST_ROWS, Footprint, LevelSize
from understudy.plan.residents import LinearSize
from understudy.plan.widths import SCORED

LEVELS = LevelSize(node_bytes=10, noise_bytes=7, sequence_bytes=100, recorded_bytes=1000)
FOOTPRINT = Footprint(
    part_bytes=(5, 6),
    substitute_bytes=300,
    shared_bytes=20,
    kv_bytes_per_token=3,
    tile_bytes=50,
    tile_logits_bytes=11,
    choosing_bytes=9,
    embedding_bytes=80,
    linears=(LinearSize(100, 400, 1), LinearSize(200, 800, 1)),
)


def test_noise_is_made_for_a_few_nodes_together_and_the_search_keeps_a_spare_sequence() -> None:
    assert LEVELS.total(4, rows=2) == 4 * 10 + 4 * 7 + 3 * 100 + 1000
    assert LEVELS.total(64, rows=1) == 64 * 10 + SCORED * 7 + 2 * 100 + 1000


def test_a_second_model_is_held_whole_with_a_cache_and_its_levels() -> None:
    weights, cache, passes = 300 + 20 + 80, 3 * 2 * 40, 2 * 50 + 11
    assert FOOTPRINT.alone(rows=2, tokens=40, widest_level=4) == weights + cache + passes
    drafting = replace(FOOTPRINT, levels=LEVELS)
    assert drafting.alone(2, 40, 4) == weights + cache + passes + LEVELS.total(4, 2)


def test_a_layer_with_a_window_takes_no_more_than_its_slots() -> None:
    sliding = replace(FOOTPRINT, kv_windows=((2, 30), (5, 100)))
    assert [sliding.kv_bytes(tokens) for tokens in (10, 40, 1000)] == [100, 3 * 40 + 2 * 30 + 5 * 40, 3000 + 60 + 500]
    assert sliding.alone(2, 40, 4) - FOOTPRINT.alone(2, 40, 4) == 2 * (2 * 30 + 5 * 40)


def test_sequences_are_as_many_as_a_small_share_of_the_budget_holds() -> None:
    each = FOOTPRINT.cache_bytes(40, 0)
    budgets = [int(count * each / CACHE_SHARE) + 1 for count in (0, 1, 3, 1000)]
    assert [FOOTPRINT.rows_in(budget, 40, 0) for budget in budgets] == [1, 1, 3, MOST_ROWS]
    nothing = replace(FOOTPRINT, kv_bytes_per_token=0)
    assert nothing.rows_in(1000, 40, 0) == MOST_ROWS, "a cache that takes nothing"


def test_exact_bytes_are_those_of_all_linears() -> None:
    assert FOOTPRINT.exact_bytes == 1200


def test_groups_side_by_side_have_a_search_and_a_level_each() -> None:
    """Beside the search for all texts, whose level is not run at the same time."""
    alone = LEVELS.total(8, rows=4)
    assert LEVELS.total(8, rows=4, groups=2) == alone + 2 * 3 * 100, "two levels of four nodes take what one of eight does"
    assert LEVELS.total(64, rows=4, groups=4) == 4 * (32 * 10 + SCORED * 7) + (5 + 4 * 3) * 100 + 1000
