"""Groups of texts that are under way at the same time give what they give together, and fail together."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.test_engine import Guessing, Slab, following
from understudy.beside import evenly
from understudy.engine import Choose, Engine
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

T = TypeVar("T")


class Threads:
    """So many groups at most, each in a thread; none ends its drafts before all have begun theirs."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def groups(self, texts: int) -> int:
        return min(self.most, texts)

    def side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        self.sizes.append(len(work))
        with ThreadPoolExecutor(len(work)) as pool:
            return [done.result() for done in [pool.submit(own) for own in work]]


class Apart(Guessing):
    """Guesses for groups at the same time, and waits in each draft until all groups are in theirs."""

    def __init__(self, seed: int, able: bool = True) -> None:
        super().__init__(seed)
        self.able = able
        self.asked: list[tuple[int, int]] = []
        self.rates: list[tuple[int, float]] = []
        self.all = Barrier(1)

    def split(self, groups: int, texts: int) -> bool:
        self.asked.append((groups, texts))
        self.all = Barrier(groups if self.able else 1)
        return self.able or groups == 1

    def draft(self, rows: Sequence[TokenSequence]) -> list[TokenTree]:
        if rows:
            self.all.wait(timeout=20)
        return super().draft(rows)

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        self.rates.append((tokens, seconds))


def exact(prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(following(text))
    return text


def run(engine: Engine, prompts: Sequence[Sequence[int]], count: int) -> list[TokenSequence]:
    rows = [TokenSequence(row, list(prompt), SamplingParams(max_new_tokens=count)) for row, prompt in enumerate(prompts)]
    for row in rows:
        engine.admit(row)
    while engine.sequences:
        engine.step()
    return rows


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_groups_are_drafted_at_the_same_time_and_no_token_changes(most: int, able: bool) -> None:
    prompts = [[1, 2, 3], [4, 5], [6], [1, 1, 1, 1]]
    slab, threads, drafter = Slab(4), Threads(most), Apart(3, able)
    rows = run(Engine(slab.verify, slab, drafter, beside=threads), prompts, 20)
    assert [row.tokens for row in rows] == [exact(prompt, 20) for prompt in prompts]
    # The first pass reads prompts.
    assert drafter.asked[0][0] == 1
    assert (len(threads.sizes) > 2) == (able and most > 1) and set(threads.sizes) <= set(range(2, most + 1))


def test_a_group_has_the_rate_of_its_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    slab, drafter = Slab(4), Apart(3)
    engine = Engine(slab.verify, slab, drafter, beside=Threads(2))
    for row in range(4):
        engine.admit(TokenSequence(row, [1, row], SamplingParams(max_new_tokens=50)))
    engine.step()
    monkeypatch.setattr("time.perf_counter", iter([1.0, 1.5, 1.5, 3.0]).__next__)
    found = engine.step()
    assert drafter.rates[-1] == (sum(len(one.tokens) for one in found), 2 * (3.0 - 1.0))
    assert [one.sequence.row for one in found] == [0, 1, 2, 3] and engine.clock.draft >= 0.5


def test_an_error_in_one_group_leaves_every_text_as_it_was() -> None:
    slab, broken = Slab(3), [False]

    def verify(nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        if broken[0] and 1 in nodes.rows:
            raise ZeroDivisionError
        return slab.verify(nodes, wanted, choose)

    engine = Engine(verify, slab, Apart(5), beside=Threads(3))
    rows = [engine.admit(TokenSequence(row, [row, 2], SamplingParams(max_new_tokens=30))) for row in range(3)]
    engine.step()
    engine.step()
    before = [list(row.tokens) for row in rows]
    broken[0] = True
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert [row.tokens for row in rows] == before and slab.lengths == [len(tokens) - 1 for tokens in before]
    broken[0] = False
    while engine.sequences:
        engine.step()
    assert [row.tokens for row in rows] == [exact([row, 2], 30) for row in range(3)]


@given(st.integers(1, 12), st.integers(1, 12))
def test_groups_differ_by_one_text_at_most(texts: int, count: int) -> None:
    rows = [TokenSequence(row, [0]) for row in range(texts)]
    groups = evenly(rows, min(count, texts))
    assert [row for group in groups for row in group] == rows
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
