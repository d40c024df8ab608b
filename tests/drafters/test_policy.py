"""What rides along, what is learned, and from whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import UNLIKELY, Calibration, Pace
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
    assert policy.calibrations[False].bonus > policy.calibrations[True].bonus
    for temperature, sampled in ((0.0, False), (0.7, True)):
        before = policy.calibrations[not sampled].seen
        tree = growing([], temperature)
        tree.children = {0: ([2.0, 1.5], [5, 6])}
        tree.favoured = {0: (3, 1)}
        old = list(policy.calibrations[sampled].bonus)
        policy.learn(tree, torch.tensor([0]), torch.tensor([6]))
        calibration = policy.calibrations[sampled]
        assert calibration.seen == Calibration().seen + 1 and calibration.missed == Calibration().missed
        assert calibration.weights[0] > Calibration().weights[0], "a second choice that was right says that chances fall slowly"
        assert calibration.bonus[3] > old[3] and calibration.bonus[:3] == old[:3], "the text was right"
        assert policy.calibrations[not sampled].seen == before
        assert policy.calibration(tree.sequence) is calibration


def test_a_token_that_is_not_among_the_children_is_a_miss() -> None:
    policy = DraftPolicy(Limits(500))
    tree = growing([])
    tree.children = {0: ([2.0, 1.5], [5, 6])}
    policy.learn(tree, torch.tensor([0]), torch.tensor([7]))
    assert policy.calibrations[False].inside < Calibration().inside


def test_after_a_prompt_the_rate_is_guessed_and_afterwards_measured() -> None:
    policy = DraftPolicy(Limits(500), pace=Pace({1: 0.01}))
    policy.limits.cost.learn(32, 1.0, 0.0)
    policy.record_round(1, 5.0, prefill=True)
    guessed = policy.pace.rate
    assert 0 < guessed <= 8
    for _ in range(99):
        policy.record_round(40, 2.0, prefill=False)
    measured = policy.pace.rate
    assert 19.9 < measured < 20.1
    policy.record_round(1, 5.0, prefill=True)
    assert policy.pace.rate == guessed, "a text that repeated itself says little of the next one"


def test_more_texts_give_more_tokens_in_the_time_that_their_nodes_take() -> None:
    """While the link is slower, four times the nodes take no longer; else they do."""
    for link, times in ((9.0, 4.0), (0.0, 4.0 * (0.5 + 0.01 * 20) / (0.5 + 0.01 * 80))):
        policy = DraftPolicy(Limits(500, cost=PassCost()))
        for nodes in (4, 32, 64, 100) * 9:
            busy = 0.5 + 0.01 * nodes
            policy.limits.cost.learn(nodes, busy, max(link - busy, 0.0))
        policy.record_round(8, 2.0, prefill=False)
        policy.serve(4, nodes=20)
        assert policy.pace.rate == pytest.approx(4.0 * times, rel=0.05)
        policy.serve(1, nodes=80)
        assert policy.pace.rate == pytest.approx(4.0, rel=0.05) and policy.texts == 1
