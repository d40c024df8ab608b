"""Speeds come from real runs of a forced shape."""

import pytest

from tests.scaling.made import TEXTS
from understudy.errors import UsageError
from understudy.params import SamplingParams
from understudy.scaling.speed import Way, measured

PARAMS = SamplingParams(0.0, max_new_tokens=12, ignore_eos=True)
OPTIONS = {"generation_config": "none", "context": 64, "resident": "none"}


def test_a_shape_is_an_option_of_the_method() -> None:
    assert Way("substitute", "", 0, 4, 2, 3).spec == "substitute:width=2,depth=3"
    assert Way("eagle", "HEAD", 1, 4, 2, 3).spec == "eagle:HEAD,width=2,depth=3"
    assert Way("none", "", 0, 4, 0, 0).spec == "none"


def test_passes_of_a_forced_shape_are_counted_and_shared() -> None:
    way = Way("substitute", "", 0, batch=2, width=2, levels=3)
    speed = measured(None, way, TEXTS, PARAMS, OPTIONS)
    assert speed.verified == pytest.approx(1 + 2 * 3, abs=2)
    assert 1 < speed.rows <= 2 and speed.nodes > speed.verified and speed.busy_seconds > 0
    assert 11 * len(TEXTS) == speed.tokens and 1 < speed.tokens_per_pass <= 1 + 3
    plain = measured(None, Way("none", "", 0, 1, 0, 0), TEXTS[:1], PARAMS, OPTIONS)
    assert (plain.verified, plain.tokens_per_pass, plain.rows) == (1, 1, 1)


def test_more_texts_than_prompts_cannot_run_together() -> None:
    with pytest.raises(UsageError, match="4 texts at once need as many prompts, got 2"):
        measured(None, Way("none", "", 0, 4, 0, 0), TEXTS[:2], PARAMS, OPTIONS)
