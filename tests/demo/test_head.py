"""The head that comes with the built-in model: small, found by its name, and worth drafting with."""

from pathlib import Path

import pytest
import torch

from tests.tiny import opened, save
from understudy import LLM, SamplingParams
from understudy.demo import PROMPT, head_path
from understudy.errors import UsageError

PARAMS = SamplingParams(max_new_tokens=32, ignore_eos=True)


def test_it_comes_with_its_card_and_is_small() -> None:
    files = [file for file in head_path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5e6
    assert (head_path() / "CARD.md").read_text().startswith("# The head of the demo model")


def test_it_drafts_alone_and_in_front_of_the_copy_and_the_text_is_plain() -> None:
    with LLM(method="none", context=256) as llm:
        plain = llm.generate(PROMPT, PARAMS)[0].token_ids
    for method, accepted in (("eagle:demo", 2.0), ("substitute:suggest=eagle:demo", 4.0)):
        with LLM(method=method, context=256) as llm:
            done = llm.generate(PROMPT, PARAMS)[0]
        assert done.token_ids == plain
        assert done.stats.mean_accepted > accepted
    assert done.stats.levels_per_round > 0 and done.stats.suggested


def test_another_model_refuses_it_by_name(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float32)
    with pytest.raises(UsageError, match="head"), opened(tmp_path / "model", method="eagle:demo"):
        pass
