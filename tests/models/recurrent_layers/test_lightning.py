"""Lightning attention: what its layers keep; what is wrong in it is seen by the proof."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from tests.tiny import opened, save, values_of
from understudy import SamplingParams
from understudy.kernels.recurrence import RuleStep
from understudy.models.proving.proof import fault
from understudy.models.recurrent_layers import lightning
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    layers = ModelShape.of(AutoConfig.for_model(**values_of("minimax"))).layers
    assert [layer.recurrent for layer in layers] == [RecurrentShape(0, 1, 4, 4, 16, 16), None, RecurrentShape(0, 1, 4, 4, 16, 16)]
    assert [layer.kv_heads for layer in layers] == [0, 2, 0]


def test_a_checkpoint_without_the_buffers_of_stock_code_gives_the_same_text(tmp_path: Path) -> None:
    """Programs store what stock code makes of its decays, or do not."""
    save(tmp_path, "minimax")
    texts = []
    for without in (False, True):
        if without:
            tensors = load_file(tmp_path / "model.safetensors")
            kept = {name: t for name, t in tensors.items() if not name.endswith(("decay", "slope_rate"))}
            assert len(tensors) - len(kept) == 8
            save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        with opened(tmp_path) as llm:
            done = llm.generate([*range(1, 90)], SamplingParams(max_new_tokens=16, ignore_eos=True))[0]
        texts.append(done.token_ids)
        assert done.stats.bytes_streamed > 0 and done.stats.accepted > 0
    assert texts[0] == texts[1]


@pytest.mark.parametrize("wrong", ["decay", "value", "heads"])
def test_a_proof_sees_what_is_wrong_in_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recur, config = lightning.Lightning.recur, AutoConfig.for_model(**values_of("minimax"))

    def otherwise(self: Any, step: RuleStep) -> Tensor:
        value = step.value.flip(2) if wrong == "value" else step.value
        decay = step.decay**1.1 if wrong == "decay" else step.decay
        key = step.key.roll(1, 1) if wrong == "heads" else step.key
        return recur(self, RuleStep(step.query, key, value, decay))

    assert fault(config) is None
    monkeypatch.setattr(lightning.Lightning, "recur", otherwise)
    assert "gives other logits" in str(fault(config))
