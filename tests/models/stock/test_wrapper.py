"""A multimodal model's text model has the logits that transformers' class computes for a text, caps and scales included."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from tests.tiny import COMMON, WRAPPERS, generated, publish, publish_omni, stock, wrapper
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError, UsageError
from understudy.models.proving import proof
from understudy.models.proving.shrink import shrunk, values_of
from understudy.models.proving.specimen import Specimen
from understudy.models.stock import structure
from understudy.models.stock.configuration import config_of, stop_ids
from understudy.models.stock.shape import ModelShape
from understudy.models.stock.wrapper import (
    Hidden,
    for_text,
    is_wrapper,
    readable,
    refuse_silent,
    straight_to_text,
    text_config,
    that_writes,
    with_text,
)
from understudy.models.streamed import attention_name
from understudy.weights.entries import SHARED
from understudy.weights.export import export

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
# Those that are tried with every way to prepare them.
PUBLISHED = (
    "qwen3_5", "mistral3-ministral3", "muse_glimmer", "gemma3n", "llama4", "minimax_m3_vl-full", "step3p7", "ernie4_5_vl_moe",
)  # fmt: skip


def test_a_text_models_config_is_its_own() -> None:
    alone, inside = stock("llama").config, wrapper("llava")
    assert text_config(alone) is alone and not is_wrapper(alone)
    assert text_config(inside) is inside.text_config and is_wrapper(inside)
    assert ModelShape.of(inside) == ModelShape.of(inside.text_config)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_its_passes_give_the_logits_of_transformers_own_class(kind: str) -> None:
    assert proof.fault(wrapper(kind)) is None


def test_a_tower_that_takes_only_attention_it_knows_is_no_obstacle() -> None:
    """That of DeepSeek-VL looks its attention up in a table of two; it is cut off, and only the text model attends by ours."""
    assert proof.fault(wrapper("deepseek_vl_hybrid", text="llama")) is None
    assert for_text(stock("llama").config, "ours") == "ours"


def test_a_head_that_is_tied_has_as_many_outputs_as_the_embedding_has_rows() -> None:
    """That of Ovis2 is made for the wrapper's vocabulary, which need not be the text model's, and has no weight of its own."""
    config = wrapper("ovis2")
    assert config.tie_word_embeddings and config.vocab_size != text_config(config).vocab_size
    assert proof.fault(config) is None


@pytest.mark.parametrize("kind", [kind for kind in WRAPPERS if kind not in PUBLISHED])
def test_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    same_as_generate(tmp_path / "model", kind)


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind in PUBLISHED for size in ("1GB", "300KB")])
def test_as_it_is_published(kind: str, size: str, tmp_path: Path) -> None:
    """Drafted text is the plain text, the other parts are on disk alone, and the files come back."""
    source = tmp_path / "model"
    publish(source, kind, torch.bfloat16, size)
    params, texts = SamplingParams(max_new_tokens=32, ignore_eos=True), []
    for method, link in (("none", False), ("substitute", False), ("substitute", True)):
        with LLM(source, method=method, link=link, resident="none", memory="1GiB", context=128) as llm:
            done = llm.generate(PROMPT, params)[0]
            store = llm.store
        texts.append(done.token_ids)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
        assert {"mtp.fc.weight", "mtp.norm.weight"} < set(store.extra) and not set(store.extra) & set(store.shared)
        assert not any(
            "vision" in name for name in (*store.shared, *(entry.weight for entry in store.linears.values()))
        )
        store.verify()
        export(store, tmp_path / f"out-{method}-{link}")
        for file in source.iterdir():
            assert (tmp_path / f"out-{method}-{link}" / file.name).read_bytes() == file.read_bytes(), file.name
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 1
    assert not any(stored.file == SHARED for stored in (store.embedding, *store.extra.values())), (
        "a link copies nothing"
    )
    same_as_generate(tmp_path / "float32", kind)


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_a_model_that_speaks_what_writes_is_run(kind: str, tmp_path: Path) -> None:
    """Its own model is the part that writes; what speaks is left aside and comes back."""
    model, texts = publish_omni(tmp_path / "single", kind, torch.float32), []
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    with LLM(tmp_path / "single", resident="none", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, params)[0]
    assert done.token_ids == generated(model, PROMPT, 24) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0
    publish_omni(tmp_path / "half", kind)
    whole = AutoConfig.from_pretrained(tmp_path / "half")
    whole.dtype, whole.thinker_config.dtype = torch.bfloat16, None
    assert whole.model_type == kind and that_writes(whole) is whole.thinker_config
    assert whole.thinker_config.dtype == torch.bfloat16, "the whole says it"
    assert config_of(tmp_path / "half").model_type == f"{kind}_thinker"
    for method in ("none", "substitute"):
        with LLM(tmp_path / "half", method=method, resident="none", memory="1GiB", context=128) as llm:
            half, store = llm.generate(PROMPT, replace(params, temperature=0.6, seed=3))[0], llm.store
        texts.append(half.token_ids)
    assert texts[0] == texts[1] and half.stats.accepted > 0 and len(set(texts[0])) > 4
    assert {name.partition(".")[0] for name in store.extra} == {"thinker", "talker", "code2wav"}
    export(store, tmp_path / "out")
    for file in (tmp_path / "half").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_wrapper_whose_text_model_is_a_part_of_its_own_writes_itself() -> None:
    for config in (stock("llama").config, wrapper("llava"), wrapper("qwen2_5_omni_thinker")):
        assert that_writes(config) is config


def same_as_generate(place: Path, kind: str) -> None:
    """In float32, the drafted text is that of the whole model's own class."""
    model = publish(place, kind, torch.float32)
    with LLM(place, resident="none", memory="1GiB", context=128, output=place.with_name("store")) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=32, ignore_eos=True))[0]
    assert done.token_ids == generated(model, PROMPT, 32)
    assert done.stats.accepted > 0, "nothing drafted was accepted: the test shows nothing"


def test_tokens_that_stand_for_images_are_not_read(tmp_path: Path) -> None:
    """The model that reads texts alone has no state for them: a prompt with one is refused, and a text ends with one."""
    publish(tmp_path / "model", "gemma3n", torch.float32)
    place, params = tmp_path / "model" / "config.json", SamplingParams(max_new_tokens=24, ignore_eos=True)
    prompt = [token for token in PROMPT if token < 200]
    assert readable(wrapper("gemma3n")) == readable(stock("llama").config) == 256
    with LLM(tmp_path / "model", memory="1GiB", context=128) as llm:
        whole = llm.generate(prompt, params)[0].token_ids
    first = max(whole)
    assert 0 < whole.index(first) < 23 and first > max(prompt)
    content = json.loads(place.read_text())
    content["vision_config"]["vocab_offset"] = first
    place.write_text(json.dumps(content))
    with LLM(tmp_path / "model", memory="1GiB", context=128) as llm:
        with pytest.raises(UsageError, match=f"Token id {first} stands for an image or a sound"):
            llm.generate([*prompt, first], params)
        done = llm.generate(prompt, params)[0]
    assert done.token_ids == whole[: whole.index(first) + 1] and done.finish_reason == "stop"


def test_nothing_is_left_but_the_language_model_and_its_head() -> None:
    model: Any = structure.skeleton(wrapper("llava"), torch.bfloat16, attention_name())
    assert model.understudy_parts.paths == ("model.vision_tower", "model.multi_modal_projector")
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"model", "lm_head"}
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name, _ in model.named_parameters())


def test_what_the_class_does_to_its_logits_is_seen_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of another text class scales its logits, and that of the multimodal class does not."""
    specimen = Specimen.of(shrunk(wrapper("cohere2_vision")))
    skeleton = structure.skeleton

    def scaled(*given: Any) -> nn.Module:
        model = skeleton(*given)
        scale = text_config(given[0]).logit_scale
        model.register_forward_hook(lambda _, __, output: SimpleNamespace(logits=output.logits * scale))
        return model

    monkeypatch.setattr(structure, "skeleton", scaled)
    assert max(proof.differences(specimen).values()) > proof.TOLERANCE


def test_a_kind_without_a_class_that_writes_text_is_refused_by_name(tmp_path: Path) -> None:
    config = wrapper("llava")

    class Unknown(type(config)):  # type: ignore[misc]
        model_type = "unknown_kind"

    with pytest.raises(CheckpointError, match="no class that writes text for a 'unknown_kind' model"):
        refuse_silent(Unknown(**{name: value for name, value in config.to_dict().items() if name != "model_type"}))
    for kind in ("clip", "siglip_vision_model"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(CheckpointError, match=f"no class that writes text for a '{kind}' model"):
            config_of(tmp_path)


def test_the_text_model_is_exchanged_in_a_copy() -> None:
    config = wrapper("llava")
    other = stock("llama", hidden_size=128).config
    assert text_config(with_text(config, other)) is other and text_config(config) is not other


def test_other_parts_are_no_switches_of_a_text_model() -> None:
    assert {"text_config", "image_token_index"} <= set(values_of(wrapper("llava")))
    assert "vision_config" not in values_of(wrapper("llava"))


def test_ends_of_a_text_are_those_of_the_wrapper_and_of_its_text_model(tmp_path: Any) -> None:
    config = wrapper("llava", eos_token_id=[7, 9])
    config.eos_token_id = 5
    assert stop_ids(tmp_path / "generation_config.json", config, None, COMMON["vocab_size"])[0] == {5, 7, 9}


def test_hidden_states_stand_alone() -> None:
    states = torch.zeros(1, 2, 3)
    hidden = Hidden(states)
    assert hidden[0] is hidden.last_hidden_state is states and hidden.image_hidden_states is None
    with pytest.raises(AttributeError):
        hidden.__len__()


def test_a_language_model_gets_no_input_but_tokens_and_places() -> None:
    model: Any = stock("llava")
    straight_to_text(model)
    ids = torch.tensor([[4, 5, 6]])
    with torch.inference_mode():
        states = model.model(input_ids=ids, pixel_values=object())
        assert torch.equal(states[0], model.get_decoder()(input_ids=ids).last_hidden_state)
