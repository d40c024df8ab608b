"""Kinds of models whose layers keep more of a text than keys and values: long texts are those of transformers, in every way to
write them."""

from pathlib import Path

import pytest
import torch

from tests.tiny import generated, opened, save
from understudy import SamplingParams

KINDS = ("inkling_text", "inkling_mm_model", "muse_spark", "dots3_note_text", "minimax", "zaya", "recurrent_gemma", "zamba2")
# longer than three tiles, with repeats that a draft finds
PROMPT = [(i * i * 7 + i // 3) % 97 + 1 for i in range(150)]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_those_of_transformers_in_every_way(kind: str, tmp_path: Path) -> None:
    """Beyond every window, alone and side by side, after a prefix that is copied or comes from a file."""
    model = save(tmp_path / "single", kind)
    greedy = SamplingParams(max_new_tokens=40, ignore_eos=True)
    with opened(tmp_path / "single", context=256) as llm:
        single = llm.generate(PROMPT, greedy)[0]
    assert single.token_ids == generated(model, PROMPT, 40) and single.stats.accepted > 0 and single.stats.bytes_streamed > 0
    save(tmp_path / "half", kind, torch.bfloat16)
    prompts = [PROMPT, [*PROMPT[:130], 7, 8, 9], PROMPT[20:90]]
    sampled = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.7, seed=5)
    plain_greedy = SamplingParams(max_new_tokens=24, ignore_eos=True)
    texts = []
    for options in (
        {"method": "none"}, {}, {"rows": 3}, {"prefix_cache": tmp_path / "prefixes"}, {"prefix_cache": tmp_path / "prefixes"},
        {"prefix_cache": tmp_path / "prefixes"},
    ):  # fmt: skip
        with opened(tmp_path / "half", context=256, **options) as llm:
            if "rows" in options:
                done = [*llm.generate(prompts, sampled), *llm.generate(prompts, plain_greedy)]
            else:
                done = [llm.generate(prompt, params)[0] for params in (sampled, plain_greedy) for prompt in prompts]
        assert options.get("method") or sum(text.stats.accepted for text in done) > 0, options
        assert all(text.stats.bytes_streamed > 0 for text in done), options
        texts.append([text.token_ids for text in done])
    assert all(found == texts[0] for found in texts[1:]) and len({token for text in texts[0] for token in text}) > 8
