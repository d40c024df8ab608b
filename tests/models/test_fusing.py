"""What gave the same in every level is taken over, and nothing else; `test_fused` has what comes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.models import fused, fusing
from understudy.models.fusing import FusedParts, Fusing


def parts(folder: Path, family: str) -> FusedParts:
    save(folder / family, family, torch.float32)
    with LLM(folder / family, memory="1GiB", context=128, rows=1) as llm:
        return llm.model.fused


@pytest.mark.parametrize(
    ("name", "left"),
    [("alike", FusedParts(0, 0, 3)), ("computes_alike", FusedParts(0, 3, 0)), ("goes_on_alike", FusedParts(3))],
)
@pytest.mark.parametrize("level", [1, 2])
def test_what_differs_in_one_level_runs_as_it_is(
    name: str, left: FusedParts, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first level that is compared, or in the second only."""
    place: Any = fused.FusedAttention if name == "alike" else fusing
    stock, compare, levels = getattr(place, name), Fusing.compare, []
    monkeypatch.setattr(Fusing, "compare", lambda self, *given: levels.append(0) or compare(self, *given))
    monkeypatch.setattr(place, name, lambda *given, **named: len(levels) != level and stock(*given, **named))
    assert parts(tmp_path, "llama") == left and len(levels) == 2


def test_without_kernels_nothing_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.devices.processor.Processor.block_kernels", lambda self: None)
    assert parts(tmp_path, "llama") == FusedParts()


def test_drafts_of_a_family_that_is_no_usual_one_are_left_alone(tmp_path: Path) -> None:
    assert parts(tmp_path, "gpt2") == FusedParts()
