"""What goes into each Linear is what goes in when transformers runs the model."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import save
from understudy.models import calibration
from understudy.models.stock.configuration import config_of
from understudy.quantizers.inputs import Inputs
from understudy.sources import layout_of
from understudy.weights.checkpoint import Checkpoint

TOKENS = [(7 * i * i + 3 * i) % 256 for i in range(70)]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2-window", "gemma3_text", "phi3"])
def test_as_hooks_see_it(family: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", family)
    checkpoint = Checkpoint.open(tmp_path / "model")
    layout = layout_of(checkpoint, tmp_path)
    seen: dict[str, Tensor] = {}

    def note(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].detach().double().square().mean((0, 1))

    for spec in layout.linears:
        model.get_submodule(spec.module).register_forward_pre_hook(partial(note, spec.module))
    with torch.no_grad():
        model(torch.tensor([TOKENS]))
    steps: list[float] = []
    found: list[Inputs | None] = []
    calibration.second_moments(
        checkpoint, layout, config_of(tmp_path / "model"), TOKENS, found.append, lambda done, total: steps.append(done / total)
    )
    assert steps[-1] == 1 and steps == sorted(steps) and len(found) == len(layout.linears)
    for spec, moments in zip(layout.linears, found, strict=True):
        assert moments is not None and moments.squares.shape == (spec.shape[1],)
        expected = seen[spec.module] / seen[spec.module].mean()
        assert torch.allclose(moments.squares.double(), expected, rtol=0.02, atol=1e-3), spec.module
    assert (found[0] is found[1]) == (family != "phi3"), "queries and keys have the same inputs, or are one Linear"


@pytest.mark.parametrize("fast", [False, True])
def test_weights_are_multiplied_in_a_type_that_is_fast(fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "llama", dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path / "model")
    layout, config = layout_of(checkpoint, tmp_path), config_of(tmp_path / "model")
    types: list[torch.dtype] = []
    weights = calibration.Reading._weights

    def watched(reading: Any, *given: Any) -> Tensor:
        found = weights(reading, *given)
        types.append(found.dtype)
        spec, start, stop, _ = given
        assert torch.equal(found.bfloat16(), checkpoint.weight_rows(spec, start, stop))
        return found

    monkeypatch.setattr(calibration.Reading, "_weights", watched)
    monkeypatch.setattr(calibration, "has_bfdot", lambda: fast)
    monkeypatch.setattr(calibration, "has_amx", lambda: False)
    found: list[Inputs | None] = []
    calibration.second_moments(checkpoint, layout, config, TOKENS, found.append)
    assert len(types) >= len(layout.linears) - 1 and set(types) == {torch.bfloat16 if fast else torch.float32}
    assert all(moments is not None for moments in found)
