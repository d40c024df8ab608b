"""What is asked of the sampler, and what was left open."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from understudy.errors import UsageError
from understudy.params import SamplingParams

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
FIELDS = ("temperature", "top_p", "top_k", "min_p", "seed", "max_new_tokens")


def test_what_is_left_open_has_the_usual_value() -> None:
    params = SamplingParams()
    assert [getattr(params, name) for name in FIELDS] == [0.0, 1.0, 0, 0.0, 0, 128]
    assert repr(params).startswith("SamplingParams(temperature=0.0, top_p=1.0, top_k=0")
    assert not any(params.gives(name) for name in (*FIELDS, "stop"))


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_is_given_even_if_it_is_the_usual_one(name: str) -> None:
    params = SamplingParams(**{name: type(getattr(SamplingParams(), name)).__mro__[2](getattr(SamplingParams(), name))})
    assert [field for field in FIELDS if params.gives(field)] == [name]
    assert params == SamplingParams()


def test_replacing_and_pickling_keep_what_was_left_open() -> None:
    params = pickle.loads(pickle.dumps(replace(SamplingParams(top_k=5), temperature=0.0)))
    assert [name for name in FIELDS if params.gives(name)] == ["temperature", "top_k"]
    assert replace(params, stop="end").gives("stop") and not params.gives("stop")


@pytest.mark.parametrize(
    "given",
    [
        *({name: value} for name in FIELDS for value in ("1", None, [1], float("nan"), -1)),
        *({name: 1.5} for name in ("seed", "top_k", "max_new_tokens")),
        *({name: value} for name in PENALTIES for value in ("1", None, [1], float("nan"), float("inf"), 1000)),
        *({name: value} for name in ("presence_penalty", "frequency_penalty") for value in (-2.5, 2.1)),
        *({"repetition_penalty": value} for value in (0.0, -1.0)),
        *({"logit_bias": value} for value in (3, "no", {1: "a"}, {"1": 2}, {1: 101}, {1: float("nan")})),
        *({"logit_bias": value} for value in ([(1, 2, 3)], [(1, 2), (1, 3)], [3], None)),
        *({"min_tokens": value} for value in (-1, 1.5, None, "2")),
        *({name: value} for name in ("logprobs", "prompt_logprobs") for value in (-1, 1.5, "2")),
        {"stop": [3]},
        {"stop": 3},
        {"stop": None},
        {"ignore_eos": "yes"},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_one_line(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(UsageError, match=f"^{name} must be"):
        SamplingParams(**given)


def test_biases_are_pairs_in_order() -> None:
    params = SamplingParams(logit_bias={7: 1, 3: -2.5})
    assert params.biases == ((3, -2.5), (7, 1.0)) and replace(params, seed=1).biases == params.biases
    assert hash(params) == hash(SamplingParams(logit_bias=[(3, -2.5), (7, 1)]))  # type: ignore[arg-type]


def test_only_what_changes_logits_adjusts() -> None:
    assert not SamplingParams(temperature=1, top_p=0.5, stop="x", logprobs=3).adjusts
    for given in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -1}, {"min_tokens": 1}):
        assert SamplingParams(**given).adjusts  # type: ignore[arg-type]
    assert SamplingParams(logit_bias={1: 1}).adjusts and not SamplingParams(logit_bias={1: 1}).penalises
    assert SamplingParams(presence_penalty=0.1).penalises


def test_a_prompt_alone_may_be_asked_for() -> None:
    assert SamplingParams(max_new_tokens=0, prompt_logprobs=0).max_new_tokens == 0
