"""Every family in float32: drafted, streamed, from a prepared Store, the tokens are those of transformers' generate."""

from functools import partial
from pathlib import Path

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice
from tests.tiny import FAMILIES, MORE_FAMILIES, generated, save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.layer_states import SlidingState

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", family)
    expected = generated(model, PROMPT, 48)
    with LLM(tmp_path / "model", resident="none", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=48, ignore_eos=True))[0]
    assert done.token_ids == expected
    assert done.stats.accepted > 0, "nothing drafted was accepted: the test shows nothing"
    assert done.stats.bytes_streamed > 0
    assert done.stats.rounds < 47


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_it_is_exact_in_both_precisions(family: str, tmp_path: Path) -> None:
    """In float32 the tokens of transformers, in bfloat16 the same drafted or not."""
    model, params = save(tmp_path / "single", family), SamplingParams(max_new_tokens=24, ignore_eos=True)
    expected = generated(model, PROMPT, 24)
    with LLM(tmp_path / "single", resident="none", memory="1GiB", context=128, codec="raw") as llm:
        single = llm.generate(PROMPT, params)[0]
    assert single.token_ids == expected and single.stats.accepted > 0 and single.stats.bytes_streamed > 0
    save(tmp_path / "half", family, torch.bfloat16)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path / "half", method=method, resident="none", memory="1GiB", context=128, codec="raw") as llm:
            half = llm.generate(PROMPT, params)[0]
            texts.append(half.token_ids)
    assert texts[0] == texts[1] and half.stats.accepted > 0
    assert len(set(expected)) > 2, "the text is one token again and again: the test shows nothing"


@pytest.mark.parametrize(
    ("family", "device"),
    [
        ("gemma3_text", "cpu"), ("mistral", "cpu"), ("gemma2", "fake"), ("gemma4_text", "cpu"), ("gemma4-e", "cpu"),
        ("gemma4-e", "fake"), ("gemma3n_text", "cpu"), ("gemma3n_text", "fake"), ("granite_swa", "fake"),
    ],
)  # fmt: skip
def test_a_text_longer_than_what_its_layers_hold(
    family: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts, one that goes back a little and one that goes back to where nothing is held any more."""
    monkeypatch.setattr(fake_device, "open_fake", partial(FakeDevice, triton=False))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    model = save(tmp_path / "model", family, max_position_embeddings=2048)
    text = [(i * i * 7 + i // 3) % 251 for i in range(760)]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    options = {"codec": "raw"} if device == "fake" else {}
    with LLM(tmp_path / "model", resident="none", memory="1GiB", context=1024, rows=1, device=device, **options) as llm:
        sliding = [layer for layer in llm.model.cache.layers if isinstance(layer, SlidingState)]
        assert sliding and all(layer.keys.shape[2] < 760 for layer in sliding)
        for prompt in (text, [*text[:740], 3, 5, 7], [*text[:90], 11, 13], text[:700]):
            done = llm.generate(prompt, params)[0]
            assert done.token_ids == generated(model, prompt, 24)
            assert done.stats.accepted > 0, "nothing drafted was accepted: the test shows nothing"


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4-e", "gemma3n_text"])
def test_bfloat16_texts_side_by_side_are_those_of_each_alone(family: str, tmp_path: Path) -> None:
    """One to three rows, drafted and not, with a second turn that begins with the first one's text."""
    save(tmp_path / "model", family, torch.bfloat16)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    prompts = [PROMPT, [*PROMPT[3:], 8, 8], [(7 * i) % 250 for i in range(70)]]

    def told(method: str, rows: int) -> list[list[int]]:
        with LLM(tmp_path / "model", method=method, resident="none", memory="1GiB", context=256, rows=rows) as llm:
            first = llm.generate(prompts[:rows], params)
            second = llm.generate([[*p, *done.token_ids, 3] for p, done in zip(prompts, first, strict=False)], params)
            assert method == "none" or min(done.stats.accepted for done in first) > 0
            return [done.token_ids for done in (*first, *second)]

    plain = told("none", 3)
    assert len({token for text in plain for token in text}) > 12
    assert told("substitute", 3) == plain
    assert told("substitute", 1) == [plain[0], plain[3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3", dtype)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path / "model", method=method, resident="none", memory="1GiB", context=128) as llm:
            texts.append(llm.generate(PROMPT, params)[0].token_ids)
    assert texts[0] == texts[1] and len(set(texts[0])) > 3


def test_a_half_precision_checkpoint_run_in_float32_is_the_float32_model(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama", torch.bfloat16).float()
    with LLM(tmp_path / "model", dtype="float32", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=32, ignore_eos=True))[0]
    assert done.token_ids == generated(model, PROMPT, 32)
