"""The lines of `bench --batching`: what differs is named, and all are compared with the first of their temperature."""

from dataclasses import fields
from typing import Any

from understudy.frontends.bench.batching import Batched, BatchingBench, cache_rows


def line(policy: str, temperature: float, *texts: tuple[int, ...]) -> Batched:
    numbers: dict[str, Any] = {field.name: 1 for field in fields(Batched)}
    return Batched(**{**numbers, "policy": policy, "temperature": temperature, "token_ids": texts, "tokens": 6 * len(texts)})


def test_a_text_that_is_not_that_of_the_first_line_is_named() -> None:
    asked: Any = None
    lines = [line("alone", 0, (1, 2)), line("ragged", 0, (1, 2), (3,)), line("eqspec", 0, (1, 4), (3,)), line("ragged", 0.6, (9,))]
    bench = BatchingBench(asked, lines=lines)
    assert [bench.identical(one) for one in lines] == [(1, 1), (1, 1), (0, 1), (1, 1)]
    assert bench.differences == ["eqspec at T=0, request 1, token 2 is not that of alone"]
    assert bench.times(lines[1]) == {"alone": 2, "ragged": 1, "eqspec": 1}


def test_a_policy_with_a_pool_has_more_cache_rows_than_a_pass_verifies() -> None:
    assert [cache_rows(policy, 8) for policy in ("ragged", "eqspec", "exspec", "exspec:batch=8")] == [8, 8, 16, 8]
