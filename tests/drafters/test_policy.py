"""What rides along, what is learned, and from whom."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import UNLIKELY, Pace
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.models.cost import PassCost
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence


def growing(pool: list[float], temperature: float = 0.0, limit: int = 9) -> GrowingTree:
    sequence = TokenSequence(0, [8], SamplingParams(temperature=temperature, seed=1), limit=limit, prompt_length=1)
    tree = GrowingTree(sequence, 0, [8])
    tree.pool = [Candidate(chance, 0, i, 1, False) for i, chance in enumerate(pool)]
    return tree


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(1, 12), st.floats(0, 50), st.floats(0, 0.1))
def test_the_likeliest_ride_along_while_they_may_save_more_time_than_they_cost(
    pool: list[float], nodes: int, rate: float, each: float
) -> None:
    cost = PassCost()
    for count in (1, 5, 9, 20):
        cost.learn(count, each * count, 0.0)
    tree = growing(pool)
    policy = DraftPolicy(Limits(500, nodes, cost), pace=Pace(rate=rate))
    policy.fill([tree])
    added = [pool[token] for token in tree.tokens[1:]]
    assert len(tree.tokens) <= max(nodes, 1) and added == sorted(pool, reverse=True)[: len(added)]
    assert all(chance > UNLIKELY for chance in added)
    if tree.pool and len(tree.tokens) < nodes:
        best = max(candidate.chance for candidate in tree.pool)
        assert best <= max(rate * cost.extra(len(tree.tokens), 1), UNLIKELY)


def test_of_a_forced_shape_the_last_level_rides_along_whatever_it_costs() -> None:
    tree = growing([0.001, 0.5, 0.002])
    DraftPolicy(Limits(500, 128), Shape(2, 1), Pace(rate=1e9)).fill([tree])
    assert tree.tokens[1:] == [1, 2]


def test_nothing_is_drafted_past_the_tokens_that_are_left() -> None:
    tree = growing([0.9], limit=1)
    DraftPolicy(Limits(500)).fill([tree])
    assert tree.tokens == [8]


def test_greedy_and_sampled_texts_teach_apart() -> None:
    policy = DraftPolicy(Limits(500))
    for temperature, sampled in ((0.0, False), (0.7, True)):
        tree = growing([], temperature)
        tree.children = {0: (4, [5, 6])}
        policy.learn(tree, torch.tensor([0]), torch.tensor([5]))
        calibration = policy.calibrations[sampled]
        assert (calibration.hits[4], calibration.trials[4]) == (1, 1)
        assert policy.calibration(tree.sequence) is calibration


def test_accepted_nodes_off_the_chain_raise_the_trust_in_such_nodes() -> None:
    policy = DraftPolicy(Limits(500))
    for _ in range(20):
        tree = growing([])
        tree.tokens, tree.parents, tree.aside = [8, 1, 2], [-1, 0, 0], {1: 0.5, 2: 0.5}
        policy.learn(tree, torch.tensor([0]), torch.tensor([0, 0, 0]))
    assert policy.calibrations[False].trust < 0.3, "none of what was foretold came true"


def test_after_a_prompt_the_rate_is_guessed_and_afterwards_measured() -> None:
    policy = DraftPolicy(Limits(500), pace=Pace({1: 0.01}))
    policy.limits.cost.learn(32, 1.0, 0.0)
    policy.record_round(1, 5.0, prefill=True)
    guessed = policy.pace.rate
    assert 0 < guessed <= 8
    policy.record_round(40, 2.0, prefill=False)
    assert policy.pace.rate == 20.0
