"""What is expected before the first pass: from a file beside a head, or as always."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.drafters.pace import FIRST_NODES, FIRST_TOKENS, Pace
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.drafters.start import FILE, START, Start
from understudy.errors import UnderstudyError
from understudy.models.cost import PassCost

MEASURED = Start(tokens_per_pass=2.5, shared_nodes=40.0, own_nodes=3.0, pass_nodes=50.0)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert Start.beside(tmp_path) is START
    MEASURED.save(tmp_path)
    assert Start.beside(tmp_path) == MEASURED and [entry.name for entry in tmp_path.iterdir()] == [FILE]


def test_nodes_of_a_pass_follow_the_number_of_texts() -> None:
    assert [MEASURED.nodes(texts) for texts in (1, 4)] == [43, 52]
    assert [START.nodes(texts) for texts in (1, 8, 64)] == [FIRST_NODES, FIRST_NODES, 64]


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"understudy_pace": 2}', '{"understudy_pace": 1, "other": 3}'),
        '{"understudy_pace": 1, "own_nodes": "x"}',
        *('{"understudy_pace": 1, "tokens_per_pass": 0.5}', '{"understudy_pace": 1, "own_nodes": NaN}'),
        json.dumps({"understudy_pace": 1, "pass_nodes": -1}),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UnderstudyError, match=f"{FILE} is not what"):
        Start.beside(tmp_path)


def policy(start: Start) -> DraftPolicy:
    """A policy that has seen levels of 0.1 s, and one pass of a prompt that took 1 s."""
    cost = PassCost()
    made = DraftPolicy(Limits(capacity=4096, cost=cost), pace=Pace({1: 0.1}), start=start)
    cost.learn(10, 1.0, 0.0)
    return made


def test_the_first_rate_is_that_of_what_was_measured() -> None:
    """A pass of n nodes costs n + 50 here, by the file; that of 10 nodes took a second."""
    made = policy(MEASURED)
    made.record_round(1, 1.0, prefill=True)
    seconds = 1.0 * (43 + 50) / (10 + 50)
    assert made.pace.rate == pytest.approx(2.5 / (seconds + 2.5 * 0.1))


def test_without_a_file_it_is_what_it_always_was() -> None:
    made = policy(START)
    made.record_round(1, 1.0, prefill=True)
    seconds = 1.0 * (FIRST_NODES + 32) / (10 + 32)
    assert made.pace.rate == pytest.approx(FIRST_TOKENS / (seconds + FIRST_TOKENS * 0.1))


def test_a_head_that_gives_fewer_tokens_drafts_fewer_levels_at_first() -> None:
    chains = []
    for tokens in (2.0, 16.0):
        made = policy(replace(MEASURED, tokens_per_pass=tokens))
        made.record_round(1, 1.0, prefill=True)
        chains.append(made.pace.levels_left(0.9, 1))
    assert chains[0] > chains[1]
