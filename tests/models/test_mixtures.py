"""Mixtures of experts: exact in every family, and a pass brings the matrices of those experts alone that its tokens go to."""

from pathlib import Path

import pytest
import torch

from tests import trained
from tests.tiny import MIXTURES, byte_tokenizer, generated, opened, publish, save, stock
from understudy import LLM, Completion, SamplingParams
from understudy.weights.export import export
from understudy.weights.store import Store

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.7, seed=5)
# Those that are tried with every way to hold and bring them.
EVERY_WAY = (
    "qwen3_moe", "gpt_oss", "nemotron_h-experts", "llama4_text", "kimi_linear", "jamba", "dbrx", "qwen4_exp_text", "deepseek_v4",
)  # fmt: skip


def bytes_of(store: Store) -> tuple[int, int]:
    """Bytes of a pass that brings everything, and those of all experts."""
    parts = [(part.stored.padded, bool(entry.experts)) for entry in store.linears.values() for part in entry.parts]
    return sum(size for size, _ in parts), sum(size for size, mixed in parts if mixed)


def brought_few_experts(done: Completion, store: Store) -> bool:
    """Has each pass brought less than half of all experts, taken over a text that was not drafted?"""
    every, experts = bytes_of(store)
    assert experts > every // 8, "there are too few bytes of experts to show anything"
    return 0 < done.stats.bytes_streamed < done.stats.rounds * (every - experts // 2)


@pytest.mark.parametrize("family", MIXTURES)
def test_tokens_are_those_of_transformers_and_bits_those_of_plain_decoding(family: str, tmp_path: Path) -> None:
    model = save(tmp_path / "single", family)
    with opened(tmp_path / "single", context=128) as llm:
        single = llm.generate(PROMPT, GREEDY)[0]
    assert single.token_ids == generated(model, PROMPT, 20) and single.stats.accepted > 0
    save(tmp_path / "half", family, torch.bfloat16)
    texts = []
    for method in ("none", "substitute"):
        with opened(tmp_path / "half", method=method, context=128, codec="raw") as llm:
            half = [llm.generate(PROMPT, params)[0] for params in (GREEDY, SAMPLED)]
            texts.append([done.token_ids for done in half])
            if method == "none":
                assert all(brought_few_experts(done, llm.store) for done in half)
    assert texts[0] == texts[1] and min(done.stats.accepted for done in half) > 0
    assert len(set(texts[0][1])) > 4, "the text is a few tokens again and again: the test shows nothing"


@pytest.mark.parametrize("family", EVERY_WAY)
def test_every_way_to_hold_and_bring_them_gives_the_same_text(family: str, tmp_path: Path) -> None:
    """Streamed or resident, encoded or as they are in the checkpoint, one text or two side by side; and the files come back."""
    source = tmp_path / "model"
    save(source, family, torch.bfloat16)
    prompts = [PROMPT, [(7 * i) % 250 for i in range(70)]]
    found = []
    for options in (
        {"method": "none", "codec": "raw"}, {"codec": "delta"}, {"resident": "auto"}, {"link": True}, {"rows": 2, "codec": "raw"},
    ):  # fmt: skip
        with opened(source, **options) as llm:
            if options.get("rows") == 2:
                done = llm.generate(prompts, SAMPLED)
            else:
                done = [llm.generate(prompt, SAMPLED)[0] for prompt in prompts]
            found.append([text.token_ids for text in done])
            store, streamed = llm.store, sum(text.stats.bytes_streamed for text in done)
            assert (streamed == 0) == ("resident" in options), options
            assert "method" in options or min(text.stats.accepted for text in done) > 0, options
        export(store, tmp_path / str(len(found)))
        for file in source.iterdir():
            assert (tmp_path / str(len(found)) / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(texts == found[0] for texts in found) and len({token for text in found[0] for token in text}) > 8


def test_a_multimodal_mixture_as_it_is_published(tmp_path: Path) -> None:
    """In shards so small that an expert's matrices lie in several."""
    source = tmp_path / "model"
    publish(source, "qwen3_vl_moe", torch.bfloat16, "200KB")
    texts = []
    for options in ({"method": "none"}, {"codec": "delta"}, {"link": True}):
        with LLM(source, resident="none", memory="1GiB", context=128, **options) as llm:
            done, store = llm.generate(PROMPT, SAMPLED)[0], llm.store
        texts.append(done.token_ids)
        export(store, tmp_path / str(len(texts)))
        for file in source.iterdir():
            assert (tmp_path / str(len(texts)) / file.name).read_bytes() == file.read_bytes(), file.name
    assert texts[0] == texts[1] == texts[2] and done.stats.accepted > 0 and len(set(texts[0])) > 4
    assert len({part.stored.file for entry in store.linears.values() if entry.experts for part in entry.parts}) > 2


def test_every_drafter_writes_the_plain_text(tmp_path: Path) -> None:
    """Words of the text itself, another model, and a trained head in front of the copy."""
    model = tmp_path / "model"
    save(model, "qwen3_moe", torch.bfloat16)
    save(tmp_path / "dense", "qwen3", torch.bfloat16)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    with opened(model, method="none", context=128) as llm:
        plain = llm.generate(PROMPT, params)[0].token_ids
    trained.agreeing(tmp_path / "head", model, "medusa", [PROMPT + plain])
    for method in ("ngram", f"classic:{tmp_path / 'dense'}", f"substitute:suggest=medusa:{tmp_path / 'head'}"):
        with opened(model, method=method, context=128) as llm:
            done = llm.generate(PROMPT, params)[0]
        assert done.token_ids == plain and done.stats.accepted > 0, method


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_mixture_in_float16_whose_router_cannot_tell_experts_apart(dtype: str, tmp_path: Path) -> None:
    """All have the same score: which of them are chosen must not depend on the pass."""
    model = stock("qwen3_moe", torch.float16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.zero_()
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    found = []
    for method, rows in (("none", 1), ("substitute", 2)):
        with opened(tmp_path / "model", method=method, rows=rows, context=128, dtype=dtype) as llm:
            found.append([done.token_ids for done in llm.generate([PROMPT, PROMPT[5:]], SAMPLED)])
    assert found[0] == found[1] and len(set(found[0][0])) > 3


@pytest.mark.parametrize("kv", ["auto", 8])
def test_long_prompts_and_rows_of_unlike_lengths(kv: str | int, tmp_path: Path) -> None:
    """Prompts that fill wide tiles and small ones, alone and in company, drafted or not."""
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=2)
    prompts = [[(i * i * 7 + i // 3) % 251 for i in range(300)], PROMPT, [(11 * i) % 249 for i in range(140)], [5]]
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, temperature=0.7, seed=5)
    found = []
    for method, rows in (("none", 1), ("substitute", 4)):
        with opened(tmp_path / "model", method=method, rows=rows, context=384, codec="raw", kv_bits=kv) as llm:
            texts = [llm.generate(prompt, params)[0] for prompt in prompts] if rows == 1 else llm.generate(prompts, params)
            found.append([done.token_ids for done in texts])
    assert found[0] == found[1] and min(done.stats.accepted for done in texts) > 0
    assert len({token for text in found[0] for token in text}) > 8


def test_texts_that_go_beyond_a_chunk_side_by_side(tmp_path: Path) -> None:
    """Long prompts, of which tiles begin and end in several chunks, alone and in company, drafted or not; a second turn goes on."""
    model = save(tmp_path / "model", "llama4_text", max_position_embeddings=2048)
    prompts = [[(i * i * 7 + i // 3) % 251 for i in range(300)], PROMPT, [(11 * i) % 249 for i in range(140)]]
    with opened(tmp_path / "model", context=512, rows=3) as llm:
        first = llm.generate(prompts, GREEDY)
        longer = [[*prompt, *done.token_ids, 7] for prompt, done in zip(prompts, first, strict=True)]
        second = llm.generate(longer, GREEDY)
    for prompt, done in zip([*prompts, *longer], [*first, *second], strict=True):
        assert done.token_ids == generated(model, prompt, 20) and done.stats.accepted > 0
