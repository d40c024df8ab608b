"""Large models are planned for as wrappers publish them, and what does not fit is told before minutes are spent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.published import GEMMA4_31B, MISTRAL_SMALL_24B, MUSE_GLIMMER_30B, QWEN36_27B
from tests.tiny import save
from understudy import LLM
from understudy.errors import UsageError
from understudy.models.stock import structure
from understudy.plan.placement import Plan
from understudy.weights.checkpoint import TensorInfo
from understudy.weights.layout import ModelLayout

CARD = "cuda:memory=24GB,link=25GB/s,host=64GB,bandwidth=1000GB/s"
LAPTOP = "cpu:memory=16GB,disk=3.5GB/s,bandwidth=60GB/s"
MIX = "mixed:bits=3.5"
# The config, billions of streamed weights, bytes of keys and values for a token in layers that see all of a text, and what --bits
# says for the copy that a laptop of 16 GB needs.
LARGE: dict[str, tuple[dict[str, Any], float, int, int | str]] = {
    "Qwen3.6-27B": (QWEN36_27B, 25.6, 16 * 2 * 4 * 256 * 2, MIX),
    "Gemma-4-31B": (GEMMA4_31B, 30.7, 10 * 2 * 4 * 512 * 2, 2),
    "Muse-Glimmer-30B": (MUSE_GLIMMER_30B, 26.6, 13 * 2 * 2 * 128 * 2, MIX),
    "Mistral-Small-24B": (MISTRAL_SMALL_24B, 22.9, 40 * 2 * 8 * 128 * 2, 4),
}
# The parts that tensors play, by their config.
LAYOUTS: dict[str, ModelLayout] = {}


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all: a proof holds for its kind of config. The many layers of a config are traced once, for all its plans."""
    place = tmp_path_factory.getbasetemp() / "large-models"
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(place))
    trace = structure.layout

    def layout(model: Any, held: Mapping[str, TensorInfo]) -> ModelLayout:
        config = model.config.to_json_string()
        if config not in LAYOUTS:
            LAYOUTS[config] = trace(model, held)
        return LAYOUTS[config]

    monkeypatch.setattr(structure, "layout", layout)
    return place


@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_is_planned_for_a_card_and_for_a_laptop(name: str, tmp_path: Path, cache: Path) -> None:
    config, weights, token_bytes, bits = LARGE[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = LLM.plan_only(config=tmp_path, machine=CARD, context=512)
    assert card.exact_bytes / 2e9 == pytest.approx(weights, rel=0.03)
    assert card.used <= card.budget_bytes < 24e9 and card.least_bytes <= card.budget_bytes
    # half of the bytes of the exact weights cross the link, less what stays
    assert card.streamed_bytes < 0.5 * card.exact_bytes
    plain, drafted = card.plain_tokens_per_second, card.predicted(8, 8)
    assert plain is not None and drafted is not None and 0.8 < plain < 2 and drafted > 5 * plain
    # beyond their window, and for recurrent layers, a longer text takes no more
    short, long = (LLM.plan_only(config=tmp_path, machine=CARD, context=n, rows=1, bits=3) for n in (4096, 8192))
    assert long.items["KV cache"] - short.items["KV cache"] == 4096 * token_bytes
    if bits != 4:
        said = re.escape(f"It fits with --bits {bits}.")
        with pytest.raises(UsageError, match=rf"smallest that works here is \d+ MiB.*{said}"):
            LLM.plan_only(config=tmp_path, machine=LAPTOP)
    laptop = LLM.plan_only(config=tmp_path, machine=LAPTOP, bits=bits)
    speed = laptop.predicted(8, 8)
    assert speed is not None and laptop.plain_tokens_per_second is not None and speed > 5 * laptop.plain_tokens_per_second > 0


def test_a_head_has_8_bits_where_they_fit(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_SMALL_24B))

    def planned(head_bits: int | str, **options: Any) -> Plan:
        return LLM.plan_only(config=tmp_path, machine=CARD, head_bits=head_bits, **options)

    def copies(plan: Plan) -> int:
        return plan.items["substitute"]

    four, eight = planned(4), planned(8)
    assert copies(eight) - copies(four) == pytest.approx(131072 * 5120 / 2, rel=0.15)
    assert copies(planned("auto")) == copies(eight)
    least = planned(4, context=512, rows=1).least_bytes
    assert copies(planned("auto", context=512, rows=1, memory=least)) == copies(four)
    with pytest.raises(UsageError, match="too small"):
        planned(8, context=512, rows=1, memory=least)


def test_a_checkpoint_that_cannot_fit_is_refused_before_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model", "llama-tied", torch.bfloat16)
    with pytest.raises(UsageError, match="too small"):
        LLM(tmp_path / "model", memory="100MiB")
    assert not list((tmp_path / "cache").glob("*/index.json"))
