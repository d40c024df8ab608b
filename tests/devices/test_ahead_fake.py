"""Drafting ahead of passes on a device that is not there, for the whole way of a token: texts are plain texts, under any plan."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.fake_graphs import FakeGraphs
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.drafters.search import SearchDrafter
from understudy.errors import UsageError

pytest.importorskip("triton")

PROMPTS = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9]]
GREEDY = SamplingParams(max_new_tokens=18, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=18, ignore_eos=True, temperature=0.6, seed=3)
# Levels ahead that a pass gives time to, as one that waits for weights does, and the seconds in which a first one begins.
WAITED, BEGUN = 4, 0.3
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ahead") / "model"
    save(path, "qwen2", torch.bfloat16, **SMALL)
    return path


def llm(model: Path, **options: Any) -> LLM:
    """Passes of it give levels ahead the time to run."""
    asked = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 256, "rows": 1, "device": "fake"}
    made = LLM(model, **{**asked, **options})
    verify, graphs = made.engine.verify, made.model.device.graphs

    def slow(*given: Any) -> Any:
        assert isinstance(graphs, FakeGraphs)
        before, start = graphs.aside, time.monotonic()
        while graphs.aside < before + WAITED and (graphs.thread is not None or time.monotonic() < start + BEGUN):
            time.sleep(0.01)
        return verify(*given)

    if options["method"] != "none":
        made.engine.verify = slow
    return made


# A copy of 8 bits is mostly right, one of 4 bits is often wrong.
@pytest.mark.parametrize("plan", [{"bits": 8}, {"codec": "delta", "resident": "auto"}], ids=["raw", "delta, residents"])
def test_texts_are_plain_texts(model: Path, opened: list[FakeDevice], plan: dict[str, Any]) -> None:
    both = (GREEDY, SAMPLED)
    with llm(model, method="none", **plan) as fake:
        plain = [fake.generate(PROMPTS[:1], params)[0].token_ids for params in both]
    with llm(model, method="substitute:ahead=on", **plan) as fake:
        done = [fake.generate(PROMPTS[:1], params)[0] for params in both]
    assert [completion.token_ids for completion in done] == plain
    stats = [completion.stats for completion in done]
    # Levels of a last draft ahead are of no use to anybody.
    assert opened[-1].recorder.aside >= sum(figures.ahead_levels for figures in stats) > 0
    assert sum(figures.ahead_used for figures in stats) > 0
    assert plan.get("bits") == 8 or sum(figures.ahead_dropped for figures in stats) > 0


def test_while_two_texts_run_rounds_are_ordinary_and_with_one_of_them_left_drafts_are_made_ahead(
    model: Path, opened: list[FakeDevice]
) -> None:
    short = SamplingParams(max_new_tokens=4, ignore_eos=True)
    with llm(model, method="none", rows=2) as fake:
        plain = [done.token_ids for done in fake.generate(PROMPTS, [GREEDY, short])]
    with llm(model, method="substitute:ahead=on", rows=2) as fake:
        done = fake.generate(PROMPTS, [GREEDY, short])
    assert [completion.token_ids for completion in done] == plain
    assert done[0].stats.ahead_levels > 0 and done[1].stats.ahead_levels == 0


def test_where_it_cannot_be_it_is_refused_or_said(model: Path, opened: list[FakeDevice], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^ahead=on is for a device with memory of its own: on cpu drafts would slow"):
        llm(model, method="substitute:ahead=on", device="cpu")
    with pytest.raises(UsageError, match=r"^ahead=on makes no sense with a forced width and depth"):
        llm(model, method="substitute:ahead=on,width=2,depth=3")
    with pytest.raises(UsageError, match=r"yes.*auto"):
        llm(model, method="substitute:ahead=yes")
    with llm(model, method="substitute:ahead=off") as fake:
        assert isinstance(fake.engine.drafter, SearchDrafter) and fake.engine.drafter.ahead is None
    save(tmp_path / "slides", "mistral", torch.bfloat16, **SMALL, max_position_embeddings=2048)
    asked = {"method": "substitute:ahead=on", "context": 1024, "rows": 1}
    with pytest.warns(RuntimeWarning, match=r"no draft is made ahead of a pass, though ahead=on asks for it: not all layers hold"):
        slides = llm(tmp_path / "slides", **asked)
    with slides:
        assert isinstance(slides.engine.drafter, SearchDrafter) and slides.engine.drafter.ahead is None
        assert any("no draft is made ahead" in note for note in slides.plan.notes)
