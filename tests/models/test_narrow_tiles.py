"""Small passes run in tiles of fewer rows once a trial has shown that no bit changes, and never where it might."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.models import narrow_tiles
from understudy.models.narrow_tiles import HEIGHTS, WORTH_TRYING, NarrowTiles
from understudy.models.target import TILE, Target
from understudy.tree import Nodes, TokenTree

PROMPT = [5, 99, 5, 12, 7]


def heights(target: Target) -> list[int]:
    """Rows of the tiles of passes of 1, 16, 17 and 37 nodes."""
    nothing = torch.empty(0, dtype=torch.int64)
    return [rows for count in (1, 16, 17, 37) for _, rows in target._cut(count, nothing)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_text_goes_on_in_low_tiles_with_the_same_bits(family: str, tmp_path: Path) -> None:
    save(tmp_path, family, torch.bfloat16)
    with LLM(tmp_path, method="none", memory="1GiB", context=256) as llm:
        target = llm.model.target
        assert target.narrow is not None and heights(target) == [TILE, TILE, TILE, TILE, TILE]
        asked = SamplingParams(max_new_tokens=WORTH_TRYING + 8, ignore_eos=True)
        changing = llm.generate([PROMPT], asked)[0].token_ids
        assert heights(target) == [8, 16, TILE, TILE, 8]
        again = llm.generate([[*PROMPT, 3]], asked)[0].token_ids
        logits = []
        for found in (HEIGHTS, ()):
            target.narrow.heights = found
            assert llm.generate([PROMPT], asked)[0].token_ids == changing
            assert llm.generate([[*PROMPT, 3]], asked)[0].token_ids == again
            for count in (1, 3, 16, 37):
                llm.model.cache.rewind(0, 0)
                with torch.inference_mode():
                    logits.append(target(Nodes.of(TokenTree.chain(list(range(5, 5 + count))), 0, 0), torch.arange(count)))
        assert all(map(torch.equal, logits[:4], logits[4:]))


def test_it_is_not_tried_before_it_pays_nor_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(narrow_tiles, "apart", lambda *given: tried.append(0) or ())
    save(tmp_path, "llama", torch.bfloat16)
    with LLM(tmp_path, method="none", memory="1GiB", context=256) as llm:
        for count, trials in ((WORTH_TRYING - 1, 0), (2, 1), (20, 1)):
            llm.generate([PROMPT], SamplingParams(max_new_tokens=count, ignore_eos=True))
            assert len(tried) == trials
        assert heights(llm.model.target) == [TILE] * 5


def test_a_model_whose_rows_know_each_other_keeps_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def mixing(self: Any, states: Tensor) -> Tensor:
        return self.weight * (states + 0.01 * states.mean(-2, keepdim=True))

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", mixing)
    # which would refuse it
    monkeypatch.setattr("understudy.sources.prove", lambda config, cache: None)
    save(tmp_path, "llama", torch.bfloat16)
    with LLM(tmp_path, method="none", memory="1GiB", context=256) as llm:
        llm.generate([PROMPT], SamplingParams(max_new_tokens=2 * WORTH_TRYING, ignore_eos=True))
        assert isinstance(llm.model.target.narrow, NarrowTiles)
        assert not llm.model.target.narrow.left and not llm.model.target.narrow.heights


@pytest.mark.parametrize(
    ("work", "whole"),
    [
        (lambda x: nn.functional.silu(x), True),
        # 8 rows of 68 numbers: the last 32 are no whole vectors
        (lambda x: nn.functional.silu(x[:, :68].contiguous()), False),
        (lambda x: nn.functional.silu(x.T), False),
        (lambda x: x[:, :68] * x[:, 1:69] + 1, True),
        (lambda x: torch.rsqrt(x.float().mean(-1)), True),
        (lambda x: x @ x.T, False),
        (lambda x: nn.functional.linear(x, x), False),
    ],
)
def test_what_might_depend_on_a_tiles_height_is_seen(work: Callable[[Tensor], Tensor], whole: bool) -> None:
    x = torch.ones(8, 128, dtype=torch.bfloat16)
    with torch.inference_mode(), narrow_tiles._Watch() as watch:
        work(x)
    assert watch.whole is whole
