"""The device's search is the host's, for shapes that are forced and for drafts that stop when they no longer pay."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, VOCABULARY, Fixed, Unaided, costing, device, draft, everything, host, said
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.pace import SHARPNESS, Calibration, Pace
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.search import SearchDrafter
from understudy.models.cost import PassCost
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence


def difference(found: list[Any], wanted: list[Any]) -> str:
    """The first thing that differs, in few words: pytest would compare all of it letter by letter."""
    names = ("tokens", "parents", "children", "deepest")
    for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name, a, b in zip(names, one, other, strict=True):
            if a != b:
                return f"row {row}: {name} {str(a)[:300]}, not {str(b)[:300]}"
    return ""


def calibrations(seed: int) -> dict[bool, Calibration]:
    chance = torch.Generator().manual_seed(seed)

    def numbers(count: int) -> list[float]:
        return (torch.rand(count, generator=chance, dtype=torch.float64) * 9).tolist()

    found = {}
    for sampled in (False, True):
        missed, more = numbers(2)
        found[sampled] = Calibration([-n for n in numbers(len(SHARPNESS))], missed, missed + more)
    return found


@st.composite
def rows_of(draw: Any) -> list[TokenSequence]:
    found = []
    for index in draw(st.permutations([0, 1, 2]))[: draw(st.integers(1, 3))]:
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.0, 0.7])), seed=draw(st.integers(0, 2**40)),
            top_k=draw(st.sampled_from([0, 5])), top_p=draw(st.sampled_from([1.0, 0.8])), min_p=draw(st.sampled_from([0.0, 0.05])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.7])), presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.8])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.5])), min_tokens=draw(st.sampled_from([0, 0, 4])),
            logit_bias=draw(st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, 1.5]), max_size=2)),
        )  # fmt: skip
        tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=6))
        stops = frozenset(draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=12)))
        found.append(TokenSequence(index, tokens, params, stops, limit=draw(st.integers(1, 14)) + 1, prompt_length=len(tokens) - 1))
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
    search = Alike(model, Unaided(seed=seed), policies[1], said)
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


@settings(max_examples=25, deadline=None)
@given(
    rows=rows_of(), seed=st.integers(0, 99), shape=st.sampled_from([Shape(), Shape(3, 4), Shape(5, 7)]), near=st.integers(0, 40)
)
@torch.inference_mode()
def test_nodes_see_their_own_path_and_inert_ones_lie_in_the_spare_slot(
    rows: list[TokenSequence], seed: int, shape: Shape, near: int
) -> None:
    """Near the end of the cache too. The text cannot tell: a draft that sees the wrong slots only guesses worse."""
    seen = nodes_seen(device(Fixed(seed, 2.0), DraftPolicy(Limits(CAPACITY, 64), shape, slow_levels())), rows, near)
    assert seen > 0 or not any(row.remaining > 1 for row in rows)


def slow_levels() -> Pace:
    return Pace({1: 0.01, 8: 0.012}, rate=10.0)


def nodes_seen(drafter: SearchDrafter, rows: list[TokenSequence], near: int) -> int:
    """How many nodes a draft had, `near` the end of the cache, each of which saw its own path alone."""
    model = drafter.proposer
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
    return seen
