"""What checkpoints publish in forms of their own, the whole way of a token on a device: weights in FP8 and float16, and several
layers for multi-token prediction."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice
from tests.mtp import MTP, SEVERAL, fit_mtp, publish_mtp, several_tensors
from tests.quantised import publish_compressed, publish_fp8
from tests.tiny import save, stock
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES

pytest.importorskip("triton")

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(seed=3))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")


def llm(model: Path, **options: Any) -> LLM:
    given = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 128, "rows": 1, "device": "fake"}
    return LLM(model, **{**given, **options})


def test_weights_in_fp8_come_as_what_their_copy_leaves_open(tmp_path: Path) -> None:
    publish_fp8(tmp_path / "model", "qwen3", (64, 64), hidden_size=128, intermediate_size=192, num_hidden_layers=2)
    texts, streamed = [], []
    for coding, method in (("raw", "none"), ("auto", "none"), ("auto", "substitute")):
        with llm(tmp_path / "model", codec=coding, method=method, bits=4, output=tmp_path / f"{coding}-{method}") as model:
            done = model.generate(PROMPT, GREEDY)[0]
            codecs = {name.rpartition(".")[2]: entry.codec for name, entry in model.store.linears.items()}
        assert coding == "raw" or (codecs.pop("lm_head") == "delta" and set(codecs.values()) == {"fp8"})
        texts.append(done.token_ids)
        streamed.append(done.stats.bytes_streamed)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
    assert texts[0] == texts[1] == texts[2] and streamed[1] < streamed[0] / 2


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_weights_in_four_bits_come_as_codes_and_scales(family: str, tmp_path: Path) -> None:
    publish_compressed(tmp_path / "model", family, "asymmetric", hidden_size=128, num_hidden_layers=2)
    texts, streamed = [], []
    for coding, method in (("raw", "none"), ("auto", "none"), ("auto", "substitute")):
        with llm(tmp_path / "model", codec=coding, method=method, bits=4, output=tmp_path / f"{coding}-{method}") as model:
            done = model.generate(PROMPT, GREEDY)[0]
            codecs = {name.rpartition(".")[2]: entry.codec for name, entry in model.store.linears.items()}
        assert coding == "raw" or (codecs.pop("lm_head") == "delta" and set(codecs.values()) == {"w4"})
        texts.append(done.token_ids)
        streamed.append(done.stats.bytes_streamed)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
    assert texts[0] == texts[1] == texts[2] and streamed[1] < streamed[0] / 2


def test_weights_in_float16_come_as_what_their_copy_leaves_open(tmp_path: Path) -> None:
    """Put together by a kernel of their own, where a copy's part was found, and multiplied as float16."""
    save(tmp_path / "model", "qwen3", torch.float16, hidden_size=128, num_hidden_layers=2)
    texts, streamed = [], []
    for coding, method in (("raw", "none"), ("auto", "none"), ("auto", "substitute")):
        with llm(tmp_path / "model", codec=coding, method=method, bits=4, output=tmp_path / f"{coding}-{method}") as model:
            done = model.generate(PROMPT, GREEDY)[0]
            stored = {(entry.codec, entry.dtype) for entry in model.store.linears.values()}
            assert model.model.dtype == torch.float16
        assert stored == {("raw" if coding == "raw" else "delta", torch.float16)}
        texts.append(done.token_ids)
        streamed.append(done.stats.bytes_streamed)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
    assert texts[0] == texts[1] == texts[2] and streamed[1] < streamed[0] * 0.8


def test_several_layers_for_multi_token_prediction_draft_on_a_device(tmp_path: Path) -> None:
    family = "glm4"
    tensors = several_tensors(family, torch.bfloat16, stock(family, torch.bfloat16, **MTP[family].changes))
    model = publish_mtp(tmp_path / "model", family, torch.bfloat16, tensors, num_nextn_predict_layers=SEVERAL[family])
    with llm(tmp_path / "model", method="none") as plain:
        text = plain.generate(PROMPT, GREEDY)[0].token_ids
    fit_mtp(tmp_path / "model", model, [PROMPT + text])
    for method in ("mtp", "substitute:suggest=mtp"):
        with llm(tmp_path / "model", method=method) as drafted:
            done = drafted.generate(PROMPT, GREEDY)[0]
        assert done.token_ids == text and done.stats.accepted > 0 and done.stats.bytes_streamed > 0, method
