"""Weights that are stored transposed are Linears like all others, and come back as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.models.stock import structure
from understudy.models.stock.turned import TurnedLinear, is_turned, on_meta, turn
from understudy.models.streamed import attention_name
from understudy.weights.export import export

PROMPT = [17, 45, 255, 0, 3, 17, 45, 99, 120, 7, 8, 9]


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ModuleList([Conv1D(10, 6), nn.Linear(10, 6)])


def test_what_is_kept_transposed_becomes_a_linear_without_values() -> None:
    before = Conv1D.__init__
    with on_meta():
        toy = Toy()
    assert Conv1D.__init__ is before and toy.inside[0].weight.is_meta
    turn(toy)
    first: Any = toy.inside[0]
    assert isinstance(first, TurnedLinear) and first.weight.shape == (10, 6) and first.bias.shape == (10,)
    assert is_turned(toy, "inside.0") and not is_turned(toy, "inside.1")


def test_all_weights_of_gpt2_but_its_head_are_stored_transposed() -> None:
    model = structure.skeleton(stock("gpt2").config, torch.bfloat16, attention_name())
    layout = structure.layout(model, structure.foretold(model, torch.bfloat16, Path()))
    assert [spec.turned for spec in layout.linears] == [True] * 12 + [False]
    assert layout.linears[0].shape == (192, 64) and layout.linears[0].stored_shape == (64, 192)


@pytest.mark.parametrize("codec", ["raw", "link"])
def test_as_it_is_published(codec: str, tmp_path: Path) -> None:
    """Without the base model's prefix, and with the masks that old programs stored."""
    model = save(tmp_path / "model", "gpt2")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(512, 512).tril().view(1, 1, 512, 512) for layer in range(3)}
    save_file(tensors | masks, file, {"format": "pt"})
    with LLM(tmp_path / "model", codec=codec, resident="none", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=32, ignore_eos=True))[0]
        store = llm.store
    assert done.token_ids == generated(model, PROMPT, 32) and done.stats.accepted > 0
    assert {entry.codec for entry in store.linears.values()} == {"raw", codec}, "rows are no rows of a file"
    store.verify()
    export(store, tmp_path / "out")
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
