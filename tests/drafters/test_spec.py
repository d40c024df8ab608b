"""The contract of specs, over the table: an extension is tested by being registered."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from understudy.drafters import DEFAULT_METHOD, DRAFTERS, PLAIN_METHOD, DrafterSpec, methods_alone, spec_of
from understudy.drafters.growing_tree import MOST_NODES
from understudy.errors import UsageError


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_spec_says_what_it_needs_before_there_is_a_model(name: str) -> None:
    spec = spec_of(name)
    assert isinstance(spec, DrafterSpec)
    assert spec.max_nodes >= 0 and 0 <= spec.level_width <= MOST_NODES
    assert spec.level_width or not spec.forced, "only levels have a forced width"
    assert spec.second_model is None or not spec.holds_substitute
    assert all(isinstance(tap, int) for tap in spec.taps)
    with pytest.raises(FrozenInstanceError):
        spec.taps = ()  # type: ignore[misc]


@pytest.mark.parametrize("name", DRAFTERS)
def test_its_options_are_its_fields_and_equal_texts_are_equal_specs(name: str) -> None:
    given = [f"{field.name}={field.default}" for field in fields(spec_of(name))]
    spec = spec_of(f"{name}:{','.join(given)}")
    assert spec == spec_of(name) and hash(spec) == hash(spec_of(name))
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(UsageError, match=f"^No method {name!r} option 'nonsense'"):
        spec_of(f"{name}:nonsense=1")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"No method 'subsitute'\. Did you mean 'substitute'"):
        spec_of("subsitute")


def test_the_names_that_others_use_are_in_the_table() -> None:
    assert {DEFAULT_METHOD, PLAIN_METHOD} <= set(DRAFTERS)
    alone = methods_alone()
    assert alone == ["none", "ngram", "substitute"]


def test_names_can_be_looked_up_before_torch_is_loaded() -> None:
    words = "import sys; from understudy.drafters import DRAFTERS; print('torch' in sys.modules, len(DRAFTERS) > 3)"
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == ["False", "True"]
