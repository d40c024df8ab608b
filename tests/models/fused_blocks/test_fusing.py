"""What gave the same in every level is taken over, and nothing else; `test_fused` has what comes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.models import draft
from understudy.models.fused_blocks import fused, fusing
from understudy.models.fused_blocks.fusing import FusedParts, Fusing


def parts(folder: Path, family: str, **changes: Any) -> FusedParts:
    save(folder / family, family, torch.float32, **changes)
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


@pytest.mark.parametrize(("original", "left"), [(100, FusedParts(0, 0, 3)), (200, FusedParts(3))])
def test_attention_that_changes_within_the_context_is_found(original: int, left: FusedParts, tmp_path: Path) -> None:
    """Its queries grow past so many positions; the context has 128."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 512 / original, "llama_4_scaling_beta": 0.5}
    assert parts(tmp_path, "ministral3", rope_parameters={**rope, "original_max_position_embeddings": original}) == left


def test_factors_near_one_inside_an_mlp_are_found(tmp_path: Path) -> None:
    """They come to 1.04: what both give differs by less than rounding may make it."""
    assert parts(tmp_path / "factors", "falcon_h1") == FusedParts()
    assert parts(tmp_path / "none", "falcon_h1", mlp_multipliers=[1.0, 1.0]) == FusedParts(0, 0, 3)


def test_a_vocabulary_may_be_smaller_than_a_level(tmp_path: Path) -> None:
    assert {token for nodes in draft._compared(3) for token in nodes.tokens.tolist()} == {0, 1, 2}
    save(tmp_path, "llama", torch.bfloat16, vocab_size=3, pad_token_id=None, eos_token_id=None)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path, memory="1GiB", context=128, rows=1, resident="none", method=method) as llm:
            # so many that small tiles are tried
            texts.append(llm.generate([[1, 2, 1]], SamplingParams(max_new_tokens=24, ignore_eos=True))[0])
    assert texts[0].token_ids == texts[1].token_ids and texts[0].stats.bytes_streamed > 0 < texts[1].stats.accepted
