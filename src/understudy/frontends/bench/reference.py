"""The same greedy prompts through transformers' own generate, all in memory: an outside witness for the tokens."""

import importlib
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..live import Live
from .rows import Bench, first_difference


def compare(model: str | None, bench: Bench, new_tokens: int, live: Live) -> str:
    """IDENTICAL, or where transformers first wrote another token. In bf16 it may: its kernels round by shape."""
    expected = next((row.token_ids for row in bench.rows if row.temperature == 0.0), None)
    if expected is None:
        raise UsageError("--reference compares greedy tokens: include 0 in --temperatures.")
    found = _generate(model, bench.prompts, new_tokens, live)
    parted = [first_difference(ids, want) for ids, want in zip(found, expected, strict=True)]
    if all(where is None for where in parted):
        return "IDENTICAL"
    index, where = next((i, w) for i, w in enumerate(parted) if w is not None)
    equal = sum(w is None for w in parted)
    return f"{equal} of {len(parted)} prompts identical; prompt {index + 1} parts at token {where + 1}"


def _generate(model: str | None, prompts: list[list[int]], new_tokens: int, live: Live) -> list[list[int]]:
    import torch

    transformers: Any = importlib.import_module("transformers")

    if model is None:
        from ...demo import path

        model = str(path())
    elif not (Path(model) / "config.json").exists() and Path(model).exists():
        raise UsageError(f"--reference needs the original checkpoint; {model} has no config.json.")
    transformers.utils.logging.disable_progress_bar()
    live.draw("transformers: loading the whole model into memory")
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    # Without the model's own end marks and penalties.
    whole.generation_config = transformers.GenerationConfig()
    greedy = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0
    )
    found = []
    for index, prompt in enumerate(prompts):
        live.draw(f"transformers: prompt {index + 1} of {len(prompts)}")
        ids = torch.tensor([prompt])
        output = whole.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found.append(output[0, len(prompt) :].tolist())
    live.clear()
    return found
