"""Levels on a device are launched ahead, recorded once for each kind, and measured without leaving anything behind."""

from functools import partial
from typing import Any

import torch

from tests.drafters.fixed import CAPACITY, Fixed, Unaided, costing, device, draft, everything, said
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.search import SearchDrafter
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import DraftCounts


@torch.inference_mode()
def test_the_host_runs_ahead_and_a_tree_does_not_depend_on_who_was_faster() -> None:
    found = []
    for seed in range(4):
        told: list[str] = []

        class Told(DeviceTreeSearch):
            def _launch(self, kind: Any, number: int, told: list[str] = told) -> Any:
                told.append(f"launch {number}")
                return super()._launch(kind, number)

            def _await(self, level: Any, told: list[str] = told) -> dict[str, int]:
                figures = super()._await(level)
                told.append(f"known {figures['level'] - 1}")
                return figures

        model, policy = Fixed(3, 5.0), DraftPolicy(Limits(CAPACITY, 128), pace=costing([1e-4] * 7, 9.0))
        drafter = SearchDrafter(model, Told(model, Unaided(seed=seed), policy, said), policy)
        took = partial(lambda told, width, seconds: told.append(f"took {width}"), told)
        policy.pace.record_level = took  # type: ignore[method-assign]
        rows = [TokenSequence(i, [4 + i], limit=12, prompt_length=1) for i in range(2)]
        found.append((everything(drafter, draft(drafter, rows, [9, 30])), told))
    assert all(one == found[0] for one in found)
    told = found[0][1]
    ahead = [n for n in range(1, 4) if f"known {n - 1}" in told and told.index(f"launch {n + 1}") < told.index(f"known {n}")]
    assert ahead and any(word.startswith("took") for word in told)


def test_as_many_graphs_are_kept_as_there_is_room_for_and_more_stop_tokens_make_room() -> None:
    drafter = device(Fixed(0, 2.0), DraftPolicy(Limits(CAPACITY, 128), Shape(2, 3)))
    for sampled in (0.0, 0.5):
        for count in (1, 2, 3):
            params = [SamplingParams(temperature=sampled, seed=i) for i in range(count)]
            rows = [TokenSequence(i, [i], params[i], limit=9, prompt_length=1) for i in range(count)]
            draft(drafter, rows, [5] * count)
    search = drafter.search
    assert search.captured == len(search.graphs) == 6 and search.replayed == 12
    many = TokenSequence(0, [1], stop_ids=frozenset(range(1, 20)), limit=9, prompt_length=1)
    draft(drafter, [many], [5])
    assert search.captured == 7 and len(search.graphs) == 1 and search.stops == 32, "there was no room for so many stop tokens"


def test_warming_measures_widths_by_levels_that_leave_nothing() -> None:
    drafter = device(Fixed(0, 2.0), DraftPolicy(Limits(CAPACITY, 128)))
    drafter.warm(seconds=60.0)
    search = drafter.search
    assert sorted(drafter.policy.pace.levels) == [1, 2, 4, 8] and search.captured == 4 and search.replayed == 8
    assert search.tensors is not None and search.tensors.state["count"][:-1].sum() == 0


def test_a_tree_says_how_many_levels_it_took() -> None:
    (tree,) = draft(device(Fixed(0, 3.0), DraftPolicy(Limits(CAPACITY), Shape(2, 5))), [TokenSequence(0, [1], limit=99)], [5])
    assert tree.counts == DraftCounts(5, 9)
