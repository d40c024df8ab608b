"""The same greedy prompts through transformers' own generate, all in memory: an outside witness for the tokens."""

import importlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UsageError, quoted
from ..live import Live
from .rows import Bench, first_difference


def check(model: str | None, temperatures: Sequence[float]) -> None:
    """Raise UsageError, before anything is measured, where there can be no comparison."""
    if 0.0 not in temperatures:
        raise UsageError("--reference compares greedy tokens: include 0 in --temperatures.")
    if model is not None and Path(model).is_dir():
        from ...weights.entries import INDEX

        what = "is a Store" if (Path(model) / INDEX).is_file() else "has no config.json"
        if what == "is a Store" or not (Path(model) / "config.json").is_file():
            raise UsageError(f"--reference needs the original checkpoint, and {model} {what}: name the checkpoint instead.")


def compare(model: str | None, bench: Bench, args: Namespace, live: Live) -> str:
    """IDENTICAL, or where transformers first wrote another token. In bf16 it may: its kernels round by shape."""
    expected = next(row.token_ids for row in bench.rows if row.temperature == 0.0)
    # What it raises is of many kinds, and what was measured is told in spite of it.
    with quoted(CheckpointError, "transformers cannot run the model", "Leave --reference out."):
        found = _generate(_place(model, args), bench.prompts, args, live)
    parted = [first_difference(ids, want) for ids, want in zip(found, expected, strict=True)]
    if all(where is None for where in parted):
        return "IDENTICAL"
    index, where = next((i, w) for i, w in enumerate(parted) if w is not None)
    equal = sum(w is None for w in parted)
    return f"{equal} of {len(parted)} prompts identical; prompt {index + 1} parts at token {where + 1}"


def _place(model: str | None, args: Namespace) -> str:
    """The directory of the checkpoint."""
    if model is None:
        from ...demo import path

        return str(path())
    if Path(model).is_dir():
        return model
    from ...weights.hub import download

    return str(download(model, args.offline, args.revision))


def _generate(place: str, prompts: list[list[int]], args: Namespace, live: Live) -> list[list[int]]:
    import torch

    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    live.draw("transformers: loading the whole model into memory")
    whole = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=args.dtype or "auto")
    # Without the model's own end marks and penalties.
    whole.generation_config = transformers.GenerationConfig()
    greedy = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=args.new_tokens, eos_token_id=None, pad_token_id=0
    )
    found = []
    for index, prompt in enumerate(prompts):
        live.draw(f"transformers: prompt {index + 1} of {len(prompts)}")
        ids = torch.tensor([prompt])
        output = whole.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found.append(output[0, len(prompt) :].tolist())
    live.clear()
    return found
