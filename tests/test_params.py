"""What is asked of the sampler, and what was left open."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from understudy.errors import UsageError
from understudy.params import SamplingParams

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
