"""Every benchmark prompt fills its 64 tokens with the demo model's tokenizer, and none was in its corpus."""

from transformers import AutoTokenizer

import prompts
from understudy.demo import path
from understudy.demo.corpus import documents


def test_prompts_are_long_enough_and_new() -> None:
    tokenizer = AutoTokenizer.from_pretrained(path())
    cut = prompts.prompts(tokenizer)
    assert len(cut) >= 6
    assert {len(tokens) for tokens in cut} == {64}
    starts = [tokenizer.decode(tokens)[:100] for tokens in cut]
    assert not any(start in document.text for document in documents() for start in starts)
