"""A trained head in front of drafts on a device that is not there: what it says after the accepted text is checked in the first
level of a draft, and no token changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import trained
from tests.drafters.world import COSTS, Steady
from tests.fake_device import FakeDevice
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.drafters.head_suggest import HEAD, HeadSuggester
from understudy.drafters.search import SearchDrafter
from understudy.heads import TargetFacts

pytest.importorskip("triton")

PROMPTS = [[5, 99, 5, 12, 80], [7, 8, 9, 10, 11]]
GREEDY = SamplingParams(max_new_tokens=9, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=7, ignore_eos=True, temperature=0.9, seed=3)
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
FACTS = TargetFacts(64, 256, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "model"
    save(path, "qwen2", torch.bfloat16, **SMALL)
    return path


@pytest.fixture
def llm(model: Path, opened: list[FakeDevice]) -> Callable[..., LLM]:
    asked = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 128, "device": "fake"}
    return lambda **options: LLM(model, **{**asked, **options})


def priced(drafter: SearchDrafter) -> None:
    """What an interpreter takes says nothing."""
    pace = Steady(dict(COSTS), rate=60.0)
    pace.record_step = lambda texts, seconds: None  # type: ignore[method-assign]
    pace.steps = {1: 0.001}
    drafter.policy.pace = pace


@pytest.mark.parametrize(
    ("kind", "params", "texts", "ahead", "codec"),
    [("eagle", SAMPLED, 2, "off", "raw"), ("medusa", GREEDY, 1, "on", "delta")],
    ids=["sampled", "greedy, ahead"],
)
def test_what_a_head_says_is_accepted_from_one_level_and_changes_no_token(
    kind: str, params: SamplingParams, texts: int, ahead: str, codec: str, model: Path, llm: Callable[..., LLM],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The head has learned what the model says after the prompt, so it agrees only where it is given the right hidden states."""
    prompts = PROMPTS[:texts]
    with llm(method="none", rows=texts) as fake:
        plain = [completion.token_ids for completion in fake.generate(prompts, params)]
    trained.agreeing(tmp_path / "head", model, kind, [a + b for a, b in zip(prompts, plain, strict=True)], target=FACTS)
    monkeypatch.setattr(SearchDrafter, "warm", priced)
    method = f"substitute:ahead={ahead},suggest={kind}:{tmp_path / 'head'},guess=off"
    with llm(method=method, rows=texts, codec=codec) as fake:
        done = fake.generate(prompts, params)
        search: Any = fake.engine.drafter.search  # type: ignore[attr-defined]
    assert [completion.token_ids for completion in done] == plain
    agreed = sum(completion.stats.agreed.get(HEAD, 0) for completion in done)
    assert sum(completion.stats.accepted for completion in done) >= agreed >= 3
    assert any(kind.guessed for kind in search.graphs) and search.captured > 0
    suggester = search.guesses.suggester
    assert isinstance(suggester, HeadSuggester)
    assert not suggester.spared[params is SAMPLED].chance(0) > 0.1, "others are not checked in the place of a chain's tokens"
