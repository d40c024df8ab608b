"""Checkpoints of GPTQ and AWQ run as what transformers multiplies by, and come back as they were published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.quantised import publish_words, reference, rewrite
from tests.tiny import generated, opened
from understudy import LLM, SamplingParams
from understudy.weights.export import export

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.7, seed=5)
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3, AWQ": ("qwen3", "awq", {}),
    "qwen3, AWQ in bfloat16": ("qwen3", "awq", {"dtype": torch.bfloat16}),
    "qwen3_moe, AWQ": ("qwen3_moe", "awq", {}),
    "qwen3_moe, AWQ in bfloat16": ("qwen3_moe", "awq", {"dtype": torch.bfloat16}),
    "qwen3, GPTQ": ("qwen3", "gptq", {}),
    "qwen3, GPTQ of the second format": ("qwen3", "gptq", {"less": 0}),
    "qwen3_moe, GPTQ, symmetric": ("qwen3_moe", "gptq", {"symmetric": True}),
    "qwen3, GPTQ in an order": ("qwen3", "gptq", {"scattered": True}),
    "qwen3, GPTQ in bfloat16": ("qwen3", "gptq", {"dtype": torch.bfloat16}),
}


def published(form: str, source: Path) -> Any:
    """Write such a checkpoint; the stock model with its weights, told number by number."""
    family, method, options = FORMS[form]
    publish_words(source, family, method, **options)
    made = load_file(source / "model.safetensors")
    dtype, less = options.get("dtype", torch.float16), options.get("less", 1) if method == "gptq" else 0
    for name in [name for name in made if name.endswith(".qweight")]:
        path = name.removesuffix("qweight")
        own = {end: made.pop(path + end) for end in ("qweight", "qzeros", "scales", "g_idx") if path + end in made}
        made[f"{path}weight"] = reference(own, method, dtype, less)
    plain = source.with_name("plain")
    plain.mkdir()
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    save_file(made, plain / "model.safetensors", {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(plain, dtype=dtype).eval()


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_transformers(form: str, tmp_path: Path) -> None:
    model = published(form, tmp_path / "model")
    # What is float16 is computed with in float32 here.
    given = {"dtype": "float32"} if "bfloat16" in form else {}
    with opened(tmp_path / "model", context=128, **given) as llm:
        done = llm.generate(PROMPT, GREEDY)[0]
    assert done.token_ids == generated(model.float(), PROMPT, 20)
    assert done.stats.accepted > 0 and done.stats.bytes_streamed > 0


@pytest.mark.parametrize("form", FORMS)
def test_drafted_text_is_the_plain_one_and_the_files_come_back(form: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    family, method, options = FORMS[form]
    publish_words(source, family, method, **options)
    texts, used = [], set()
    for number, given in enumerate(({"method": "none", "codec": "raw"}, {"codec": "w4", "method": "none"}, {"codec": "w4"})):
        with opened(source, context=128, bits=4, **given) as llm:
            done = [llm.generate(PROMPT, params)[0] for params in (GREEDY, SAMPLED)]
            store = llm.store
        texts.append([text.token_ids for text in done])
        assert min(text.stats.bytes_streamed for text in done) > 0
        assert "method" in given or min(text.stats.accepted for text in done) > 0
        used = {entry.codec for entry in store.linears.values() if entry.module != "lm_head"}
        store.verify()
        export(store, tmp_path / str(number))
        for file in source.iterdir():
            assert (tmp_path / str(number) / file.name).read_bytes() == file.read_bytes(), file.name
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0][1])) > 4
    # weights whose groups are no neighbours stream as others
    assert used == {"w4"} if not options.get("scattered") else "w4" not in used


@pytest.mark.parametrize("form", ["qwen3, AWQ", "qwen3, AWQ in bfloat16", "qwen3, GPTQ"])
def test_weights_stream_as_codes_scales_and_zero_points(form: str, tmp_path: Path) -> None:
    family, method, options = FORMS[form]
    publish_words(tmp_path / "model", family, method, changes={"hidden_size": 128, "intermediate_size": 320}, **options)
    told: list[str] = []
    store = LLM.prepare(
        tmp_path / "model", rows=1, codec="w4", bits=4, calibrate="none", output=tmp_path / "store",
        progress=lambda stage, *_: told.append(stage),
    )  # fmt: skip
    entries = [entry for entry in store.linears.values() if entry.module != "lm_head"]
    numbers = sum(-(-entry.shape[0] // 64) * 64 * entry.shape[1] for entry in entries)
    streamed = sum(part.stored.nbytes for entry in entries for part in entry.parts) * 8 / numbers
    # in bfloat16 scales of float16 are bfloat16 before they are multiplied by
    assert 4.75 <= streamed < 4.85
    dtype = "bfloat16" if "bfloat16" in form else "float16"
    how = f"Published in {method.upper()} in groups of 32: exact are the {dtype} weights that transformers multiplies by"
    assert f"{how} where it has no kernel of its own" in told


def test_biases_that_the_model_has_not_are_left_aside(tmp_path: Path) -> None:
    """Some programs for GPTQ give one to each Linear; transformers leaves them aside where the model has none."""
    source = tmp_path / "model"
    publish_words(source, "qwen3", "gptq")
    made, texts = load_file(source / "model.safetensors"), []
    for number in range(2):
        with opened(source, context=128, output=tmp_path / f"store-{number}") as llm:
            done, store = llm.generate(PROMPT, GREEDY)[0], llm.store
        texts.append(done.token_ids)
        assert done.stats.accepted > 0 and any(name.endswith(".bias") for name in store.extra) == (number == 1)
        paths = [name.removesuffix("qweight") for name in made if name.endswith(".qweight")]
        made |= {f"{path}bias": torch.zeros(made[f"{path}qweight"].shape[1]).half() for path in paths}
        rewrite(source, made)
    assert texts[0] == texts[1]
    export(store, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
