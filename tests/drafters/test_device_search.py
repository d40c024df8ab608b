"""The device's search is the host's, for shapes that are forced and for drafts that stop when they no longer pay."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, VOCABULARY, Fixed, draft
from tests.fake_device import FakeDevice
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.pace import EDGES, WIDEST, Calibration, Pace
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.search import SearchDrafter
from understudy.drafters.tree_search import TreeSearch
from understudy.models.cost import PassCost
from understudy.params import SamplingParams
from understudy.plan.widths import padded, widest
from understudy.sequence import TokenSequence
from understudy.tree import TokenTree


def said(note: str) -> None:
    raise AssertionError(note)


def host(model: Fixed, policy: DraftPolicy) -> SearchDrafter:
    return SearchDrafter(model, TreeSearch(model, policy), policy)


def device(model: Fixed, policy: DraftPolicy) -> SearchDrafter:
    return SearchDrafter(model, DeviceTreeSearch(model, FakeDevice(), policy, said), policy)


def everything(drafter: SearchDrafter, trees: Sequence[TokenTree]) -> list[Any]:
    """Trees, and what will be learned from them."""
    found: list[Any] = []
    for tree, grown in zip(trees, drafter.trees.values(), strict=True):
        aside = {node: f"{chance:.9e}" for node, chance in grown.aside.items()}
        found.append((tree.tokens.tolist(), tree.parents.tolist(), grown.children, aside, grown.deepest))
    return found


def difference(found: list[Any], wanted: list[Any]) -> str:
    """The first thing that differs, in few words: pytest would compare all of it letter by letter."""
    names = ("tokens", "parents", "children", "aside", "deepest")
    for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name, a, b in zip(names, one, other, strict=True):
            if a != b:
                return f"row {row}: {name} {str(a)[:300]}, not {str(b)[:300]}"
    return ""


class Steady(Pace):
    """Costs are as given: what levels really took says nothing."""

    def record_level(self, width: int, seconds: float) -> None: ...


def costing(cost: Sequence[float], rate: float) -> Pace:
    """Levels that cost what their padded width costs; no level takes longer than a wider one."""
    by_width = sorted(cost)
    return Steady({n: by_width[int(math.log2(padded(n)))] for n in range(1, 65)}, rate)


def calibrations(seed: int) -> dict[bool, Calibration]:
    chance = torch.Generator().manual_seed(seed)

    def numbers(count: int) -> list[float]:
        return (torch.rand(count, generator=chance, dtype=torch.float64) * 9).tolist()

    found = {}
    for sampled in (False, True):
        hits = numbers(len(EDGES) + 1)
        trials = [hit + more for hit, more in zip(hits, numbers(len(hits)), strict=True)]
        ranks, aside = [n + 0.5 for n in numbers(4)], [n + 1 for n in numbers(2)]
        found[sampled] = Calibration([-n for n in numbers(5)], hits, trials, ranks, aside)
    return found


@st.composite
def rows_of(draw: Any) -> list[TokenSequence]:
    found = []
    for index in draw(st.permutations([0, 1, 2]))[: draw(st.integers(1, 3))]:
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.0, 0.7])), seed=draw(st.integers(0, 2**40)),
            top_k=draw(st.sampled_from([0, 5])), top_p=draw(st.sampled_from([1.0, 0.8])), min_p=draw(st.sampled_from([0.0, 0.05])),
        )  # fmt: skip
        tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5))
        stops = frozenset(draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=12)))
        found.append(TokenSequence(index, tokens, params, stops, limit=draw(st.integers(1, 14)), prompt_length=len(tokens)))
    return found


@settings(max_examples=50, deadline=None)
@given(
    rows=rows_of(), seed=st.integers(0, 99), sharp=st.sampled_from([0.5, 2.0, 5.0]), rate=st.floats(0.0, 60.0),
    cost=st.lists(st.floats(1e-3, 0.05), min_size=7, max_size=7), nodes=st.sampled_from([20, 64, 128]),
    free=st.booleans(), each=st.floats(0, 2e-3),
)  # fmt: skip
@torch.inference_mode()
def test_drafts_that_stop_when_they_no_longer_pay_are_the_hosts(
    rows: list[TokenSequence], seed: int, sharp: float, rate: float, cost: list[float], nodes: int, free: bool, each: float
) -> None:
    class Alike(DeviceTreeSearch):
        """Awaits every level, so that each is as wide as it should be."""

        def _await(self, level: Any) -> dict[str, int]:
            return {**super()._await(level), "left": 0}

    passes = PassCost(32)
    for count in (nodes, 32, nodes):
        passes.learn(count, 0.01 + count * each, 0.0)
    limits = Limits(CAPACITY, nodes, passes, lambda: free)
    model, lengths = Fixed(seed, sharp), [17 * (1 + row.row) for row in rows]
    policies = [DraftPolicy(limits, pace=costing(cost, rate)) for _ in range(2)]
    here = host(model, policies[0])
    search = Alike(model, FakeDevice(seed=seed), policies[1], said)
    there = SearchDrafter(model, search, policies[1])
    for _ in range(2):
        for policy in policies:
            policy.calibrations = calibrations(seed)
        wanted = everything(here, draft(here, rows, lengths))
        assert not difference(everything(there, draft(there, rows, lengths)), wanted)
    ran = any(row.remaining > 1 for row in rows)
    assert (search.captured > 0) == (search.replayed > 0) == ran


@settings(max_examples=40, deadline=None)
@given(rows=rows_of(), seed=st.integers(0, 99), width=st.integers(1, 7), depth=st.integers(1, 8), nodes=st.sampled_from([20, 128]))
@torch.inference_mode()
def test_a_forced_shape_gives_the_hosts_tree(rows: list[TokenSequence], seed: int, width: int, depth: int, nodes: int) -> None:
    model, lengths = Fixed(seed, 2.0), [11 * (1 + row.row) for row in rows]
    policy = DraftPolicy(Limits(CAPACITY, nodes), Shape(width, depth), calibrations=calibrations(seed))
    here, there = host(model, policy), device(model, policy)
    wanted = everything(here, draft(here, rows, lengths))
    assert not difference(everything(there, draft(there, rows, lengths)), wanted)
    assert (there.search.captured > 0) == any(row.remaining > 1 for row in rows)


@torch.inference_mode()
def test_the_host_runs_ahead_and_a_tree_does_not_depend_on_who_was_faster() -> None:
    found = []
    for seed in range(4):
        told: list[str] = []

        class Told(DeviceTreeSearch):
            def _launch(self, kind: Any, width: int, number: int, told: list[str] = told) -> Any:
                told.append(f"launch {number}")
                return super()._launch(kind, width, number)

            def _await(self, level: Any, told: list[str] = told) -> dict[str, int]:
                figures = super()._await(level)
                told.append(f"known {figures['level'] - 1}")
                return figures

        model, policy = Fixed(3, 5.0), DraftPolicy(Limits(CAPACITY, 128), pace=costing([1e-4] * 7, 9.0))
        drafter = SearchDrafter(model, Told(model, FakeDevice(seed=seed), policy, said), policy)
        took = partial(lambda told, width, seconds: told.append(f"took {width}"), told)
        policy.pace.record_level = took  # type: ignore[method-assign]
        rows = [TokenSequence(i, [4 + i], limit=12, prompt_length=1) for i in range(2)]
        found.append((everything(drafter, draft(drafter, rows, [9, 30])), told))
    assert all(one == found[0] for one in found)
    told = found[0][1]
    ahead = [n for n in range(1, 4) if f"known {n - 1}" in told and told.index(f"launch {n + 1}") < told.index(f"known {n}")]
    assert ahead and any(word.startswith("took") for word in told)


def test_levels_are_padded_to_few_widths_and_as_many_graphs_are_kept() -> None:
    assert [padded(n) for n in (1, 2, 3, 6, 16, 17, 64)] == [1, 2, 4, 8, 16, 32, 64]
    assert widest(WIDEST, False, 1) == 16 and widest(WIDEST, False, 8) == 64
    assert widest(6, True, 3) == 32 and not widest(0, False, 4)
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


@settings(max_examples=25, deadline=None)
@given(
    rows=rows_of(), seed=st.integers(0, 99), shape=st.sampled_from([Shape(), Shape(3, 4), Shape(5, 7)]), near=st.integers(0, 40)
)
@torch.inference_mode()
def test_nodes_see_their_own_path_and_inert_ones_lie_in_the_spare_slot(
    rows: list[TokenSequence], seed: int, shape: Shape, near: int
) -> None:
    """Near the end of the cache too. The text cannot tell: a draft that sees the wrong slots only guesses worse."""
    model = Fixed(seed, 2.0)
    drafter = device(model, DraftPolicy(Limits(CAPACITY, 64), shape, Pace({1: 0.01, 8: 0.012}, rate=10.0)))
    drafter.search.recording = False
    lengths = [CAPACITY - 2 - near - row.row for row in rows]
    trees = draft(drafter, rows, lengths)
    where = {row.row: (length, tree) for row, length, tree in zip(rows, lengths, trees, strict=True)}
    seen = 0
    for nodes in model.ran:
        for i, slot in enumerate(nodes.slots.tolist()):
            if slot == CAPACITY - 1:
                assert nodes.slots_in_order(i).tolist() == [0]
                continue
            length, tree = where[int(nodes.rows[i])]
            path = tree.ancestors[slot - length].nonzero().flatten()
            assert nodes.slots_in_order(i).tolist() == [*range(length), *(length + path).tolist()]
            assert int(nodes.tokens[i]) == int(tree.tokens[slot - length])
            seen += 1
    assert seen == sum(len(tree.children) for tree in drafter.trees.values())
