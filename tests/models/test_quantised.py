"""Checkpoints that are published quantised, FP8 and MXFP4, run as what transformers makes of them with `dequantize=True`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.quantised import (
    as_published,
    compressed,
    dequantised,
    publish_compressed,
    publish_deepseek_v4,
    publish_fp8,
    publish_mxfp4,
    publish_words,
    rewrite,
    to_fp8,
)
from tests.tiny import generated, opened
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError, UnderstudyError, UsageError
from understudy.models.stock.configuration import config_of
from understudy.models.stock.structure import layout, skeleton
from understudy.models.streamed import attention_name
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.export import export

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.7, seed=5)
FORMS: dict[str, Callable[[Path], None]] = {
    "gpt_oss in MXFP4": publish_mxfp4,
    "qwen3 in FP8": lambda path: publish_fp8(path, "qwen3"),
    "qwen3 in FP8, one scale a tensor": lambda path: publish_fp8(path, "qwen3", None),
    "qwen3 in FP8, one scale a row": lambda path: publish_fp8(path, "qwen3", (1, 1 << 16)),
    "qwen3_moe in FP8": lambda path: publish_fp8(path, "qwen3_moe"),
    "deepseek_v3 in FP8": lambda path: publish_fp8(path, "deepseek_v3", (8, 8)),
    "deepseek_v4 in FP8 and FP4": publish_deepseek_v4,
    "minimax_m2 in FP8": lambda path: publish_fp8(path, "minimax_m2"),
    "qwen3_moe in FP8 of compressed-tensors": lambda path: publish_compressed(path, "qwen3_moe", "fp8"),
    "qwen3_moe in INT4 of compressed-tensors": lambda path: publish_compressed(path, "qwen3_moe", "int4"),
    "qwen3 in INT4 of compressed-tensors": lambda path: publish_compressed(path, "qwen3", "int4"),
    "qwen3 in INT4 of compressed-tensors, with zero points": lambda path: publish_compressed(path, "qwen3", "asymmetric"),
}
# of which transformers 5.23 does not find the zero points of experts, though of others; and a model of several modalities
NOT_THERE: dict[str, Callable[[Path], None]] = {
    "step3p7 in FP8": lambda path: publish_fp8(path, "step3p7"),
    "qwen3_moe in INT4 of compressed-tensors, with zero points": lambda path: publish_compressed(path, "qwen3_moe", "asymmetric"),
}


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """All weights that stream, as they are read, by the names of their parameters."""
    checkpoint = Checkpoint.open(directory)
    model = skeleton(config_of(directory), torch.bfloat16, attention_name())
    specs = layout(model, checkpoint.tensors).linears
    names = (spec.module if spec.experts else f"{spec.module}.weight" for spec in specs)
    return {name: checkpoint.weight_rows(spec, 0, spec.shape[0]) for name, spec in zip(names, specs, strict=True)}


@pytest.mark.parametrize("form", FORMS)
def test_weights_and_tokens_are_those_of_transformers(form: str, tmp_path: Path) -> None:
    if "compressed" in form:
        pytest.importorskip("compressed_tensors", reason="transformers reads these with that package alone")
    source = tmp_path / "model"
    FORMS[form](source)
    model = dequantised(source)
    expected, own = model.state_dict(), weights_of(source)
    assert any(name.endswith(("down_proj", "down_proj.weight")) for name in own)
    for name, rows in own.items():
        wanted = expected[name]
        if wanted.dim() == 3:
            wanted = (wanted.transpose(1, 2) if "MXFP4" in form else wanted).flatten(0, 1)
        assert torch.equal(rows.view(torch.int16), wanted.contiguous().view(torch.int16)), name
    with opened(source, context=128, dtype="float32") as llm:
        single = llm.generate(PROMPT, GREEDY)[0]
    assert single.token_ids == generated(model.float(), PROMPT, 20)
    assert single.stats.accepted > 0 and single.stats.bytes_streamed > 0


@pytest.mark.parametrize("block", [(32, 32), (16, 8), (1, 1 << 16), None])
def test_matrices_that_are_published_in_stacks_have_scales_of_their_own(block: tuple[int, int] | None, tmp_path: Path) -> None:
    publish_fp8(tmp_path, "step3p7", block)
    stored, own = load_file(tmp_path / "model.safetensors"), weights_of(tmp_path)

    def plain(name: str) -> torch.Tensor:
        codes, scales = stored[f"{name}.weight"].float(), stored[f"{name}.weight_scale_inv"].view(-1, 1, 1) if block is None else (
            stored[f"{name}.weight_scale_inv"]
        )
        for place in (1, 2):
            scales = scales.repeat_interleave(codes.shape[place] // scales.shape[place], place)
        return (codes * scales).bfloat16()

    for layer in (1, 2):
        first, second, down = (plain(f"model.layers.{layer}.moe.{name}_proj") for name in ("gate", "up", "down"))
        experts = f"language_model.layers.{layer}.mlp.experts."
        found = {name.partition(experts)[2]: rows for name, rows in own.items() if experts in name}
        assert torch.equal(found["gate_up_proj"], torch.cat((first, second), 1).flatten(0, 1))
        assert torch.equal(found["down_proj"], down.flatten(0, 1))


@pytest.mark.parametrize(
    "form",
    [
        "gpt_oss in MXFP4", "qwen3_moe in FP8", "deepseek_v3 in FP8", "qwen3_moe in FP8 of compressed-tensors",
        "qwen3_moe in INT4 of compressed-tensors", "qwen3_moe in INT4 of compressed-tensors, with zero points", "step3p7 in FP8",
    ],
)  # fmt: skip
def test_drafted_text_is_the_plain_one_and_the_files_come_back(form: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    {**FORMS, **NOT_THERE}[form](source)
    texts = []
    own = "mxfp4" if "MXFP4" in form else "fp8" if "FP8" in form else "w4"
    sizes = {}
    for options in ({"method": "none", "codec": "raw"}, {"codec": "raw"}, {"codec": "delta"}, {"codec": "fp8"}, {"codec": "w4"}):
        # on a busy machine a copy of 6 bits may be chosen, beside which such weights take more
        with opened(source, context=128, bits=4, **options) as llm:
            done = [llm.generate(PROMPT, params)[0] for params in (GREEDY, SAMPLED)]
            store = llm.store
        texts.append([text.token_ids for text in done])
        assert min(text.stats.bytes_streamed for text in done) > 0
        assert "method" in options or min(text.stats.accepted for text in done) > 0
        experts = {entry.codec for entry in store.linears.values() if entry.experts}
        # either of the codecs for published weights asks for that of these
        named = own if options["codec"] in ("fp8", "w4") else options["codec"]
        assert experts == {"mxfp4" if own == "mxfp4" else named}
        parts = (part for entry in store.linears.values() if entry.experts for part in entry.parts)
        sizes[options["codec"]] = sum(part.stored.nbytes for part in parts)
        store.verify()
        export(store, tmp_path / str(len(texts)))
        for file in source.iterdir():
            assert (tmp_path / str(len(texts)) / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(text == texts[0] for text in texts) and len(set(texts[0][1])) > 4
    # 64 factors for 8 columns take as much as is saved
    if "deepseek" not in form:
        assert sizes["fp8"] == sizes["delta"] if own == "mxfp4" else sizes["fp8"] < sizes["delta"]
        assert sizes["w4"] == sizes["fp8"]


def test_a_linear_that_decides_and_a_layer_that_is_left_aside(tmp_path: Path) -> None:
    """Of the first the Store keeps weights and codes, of the other codes alone; both come back."""
    source = tmp_path / "model"
    publish_fp8(source, "deepseek_v3", (8, 8), q_lora_rank=8, num_nextn_predict_layers=1)
    made = load_file(source / "model.safetensors")
    codes, scales = to_fp8(torch.randn(64, 128), (8, 8))
    made |= {"model.layers.3.eh_proj.weight": codes, "model.layers.3.eh_proj.weight_scale_inv": scales}
    rewrite(source, made)
    model = dequantised(source)
    with opened(source, context=128, dtype="float32") as llm:
        done, store = llm.generate(PROMPT, GREEDY)[0], llm.store
    name = "model.layers.0.self_attn.q_a_proj.weight"
    assert store.shared[name].dtype == torch.bfloat16 and store.extra[name].dtype == torch.float8_e4m3fn
    assert torch.equal(store.read(store.shared[name]), model.state_dict()[name])
    assert done.token_ids == generated(model.float(), PROMPT, 20) and done.stats.accepted > 0
    export(store, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_what_is_exact_is_said_in_one_line_and_nothing_links_to_codes(tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish_fp8(source, "qwen3")
    told: list[str] = []
    store = LLM.prepare(source, output=tmp_path / "store", progress=lambda stage, *_: told.append(stage), rows=1)
    line = "Published in FP8 in blocks of 32 x 32: exact are the bfloat16 weights that transformers makes of it (dequantize=True)"
    assert told.count(line) == 1
    plans = [LLM.plan_only(place, memory="1GiB", rows=1, resident="none") for place in (source, store.path)]
    plans.append(LLM.plan_only(None, config=source, memory="1GiB", rows=1, resident="none", codec="raw"))
    assert all(line in plan.notes for plan in plans)
    for use in (lambda: LLM(source, link=True), lambda: LLM.plan_only(source, link=True)):
        with pytest.raises(UsageError, match="--link reads weights as they are published, and these are published in FP8"):
            use()


def test_weights_in_mxfp4_stream_as_they_are_published(tmp_path: Path) -> None:
    """In 4.25 bits each, whatever the codec of the others."""
    source = tmp_path / "model"
    publish_mxfp4(source)
    store = LLM.prepare(source, rows=1, codec="raw", output=tmp_path / "store")
    for entry in store.linears.values():
        streamed = sum(part.stored.nbytes for part in entry.parts)
        rows, columns = -(-entry.shape[0] // 64) * 64, entry.shape[1]
        assert streamed * 8 == rows * columns * (4.25 if entry.experts else 16)


@pytest.mark.parametrize("kind", ["blocks", "rows", "tensor", "compressed"])
def test_weights_in_fp8_stream_what_their_copy_leaves_open_of_their_codes(kind: str, tmp_path: Path) -> None:
    """The head, which is published as it is, has another codec."""
    source = tmp_path / "model"
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2}
    if kind == "compressed":
        publish_compressed(source, "qwen3", "fp8", **sizes)
    else:
        publish_fp8(source, "qwen3", {"blocks": (64, 64), "rows": (1, 1 << 16), "tensor": None}[kind], **sizes)
    texts, streamed = [], {}
    for coding, method in (("delta", "none"), ("fp8", "none"), ("delta", "substitute"), ("fp8", "substitute")):
        with opened(source, context=128, bits=4, codec=coding, method=method) as llm:
            done, store = llm.generate(PROMPT, GREEDY)[0], llm.store
        codecs = {name.rpartition(".")[2]: entry.codec for name, entry in store.linears.items()}
        assert codecs.pop("lm_head") == "delta" and set(codecs.values()) == {coding}
        texts.append(done.token_ids)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
        parts = (part for entry in store.linears.values() if entry.module != "lm_head" for part in entry.parts)
        streamed[coding] = sum(part.stored.nbytes for part in parts)
        store.verify()
    assert texts[0] == texts[1] == texts[2] == texts[3] and streamed["fp8"] < streamed["delta"] * 0.65


@pytest.mark.parametrize("form", ["fp8", "int4", "awq", "gptq"])
def test_a_config_tells_the_sizes_of_published_weights(form: str, tmp_path: Path) -> None:
    source, coding = tmp_path / "model", "fp8" if form == "fp8" else "w4"
    changes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024}
    if form == "fp8":
        publish_fp8(source, "qwen3", (64, 64), **changes)
    elif form == "int4":
        publish_compressed(source, "qwen3", "int4", **changes)
    else:
        publish_words(source, "qwen3", form, changes=changes)
    options: dict[str, Any] = {"memory": "1GiB", "rows": 1, "resident": "none", "bits": 4, "context": 128, "codec": coding}
    from_config, from_checkpoint = LLM.plan_only(None, config=source, **options), LLM.plan_only(source, **options)
    store = LLM.prepare(source, rows=1, bits=4, codec=coding, calibrate="none")
    prepared = LLM.plan_only(store.path, **{**options, "bits": "auto", "codec": "auto"})
    assert from_config.streamed_bytes == from_checkpoint.streamed_bytes
    assert abs(prepared.streamed_bytes / from_config.streamed_bytes - 1) < 0.2
    delta = LLM.plan_only(source, **{**options, "codec": "delta"})
    assert from_config.streamed_bytes < delta.streamed_bytes * 0.7


def test_a_part_in_fp8_that_is_damaged_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish_fp8(source, "qwen3")
    store = LLM.prepare(source, rows=1, codec="fp8", calibrate="none", output=tmp_path / "store")
    stored = next(entry.parts[0].stored for entry in store.linears.values() if entry.codec == "fp8")
    file = store.path / stored.file
    data = bytearray(file.read_bytes())
    data[stored.offset + stored.nbytes // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(UnderstudyError) as refusal:
        store.verify()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("publish", [publish_mxfp4, publish_deepseek_v4])
def test_sizes_of_a_config_are_those_of_its_checkpoint(publish: Callable[[Path], None], tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish(source)
    options: dict[str, Any] = {"memory": "1GiB", "rows": 1, "resident": "none", "codec": "raw", "bits": 4, "context": 128}
    from_config, from_checkpoint = LLM.plan_only(None, config=source, **options), LLM.plan_only(source, **options)
    prepared = LLM.plan_only(LLM.prepare(source, rows=1, codec="raw", bits=4).path, **{**options, "bits": "auto", "codec": "auto"})
    names = ("substitute", "shared", "kv_cache")
    for plan in (from_checkpoint, prepared):
        assert plan.streamed_bytes == from_config.streamed_bytes
        assert {name: plan.items.get(name) for name in names} == {name: from_config.items.get(name) for name in names}


def test_an_exponent_that_stands_for_no_number_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish_mxfp4(source)
    made = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    made[f"{name}_scales"][5, 7, 1] = 255
    rewrite(source, made)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' holds (NaN|an infinity)"):
        LLM.prepare(source, rows=1, calibrate="none")


@pytest.mark.parametrize("missing", ["scales", "blocks"])
def test_codes_without_scales_are_refused_by_name(missing: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish_mxfp4(source)
    name = f"model.layers.1.mlp.experts.down_proj_{missing}"
    rewrite(source, {key: tensor for key, tensor in load_file(source / "model.safetensors").items() if key != name})
    with pytest.raises(CheckpointError, match=name if missing == "scales" else "down_proj") as refusal:
        LLM.prepare(source, rows=1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_weights_in_four_bits_stream_as_their_codes_and_scales(family: str, tmp_path: Path) -> None:
    """4.5 bits each; the head, which is published as it is, has another codec."""
    source = tmp_path / "model"
    changes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2}
    publish_compressed(source, family, "int4", **changes)
    texts, streamed = [], {}
    for coding, method in (("delta", "none"), ("w4", "none"), ("delta", "substitute"), ("w4", "substitute")):
        with opened(source, context=128, bits=4, codec=coding, method=method) as llm:
            done, store = llm.generate(PROMPT, GREEDY)[0], llm.store
        codecs = {name: entry.codec for name, entry in store.linears.items()}
        assert codecs.pop("lm_head") == "delta" and set(codecs.values()) == {coding}
        texts.append(done.token_ids)
        assert done.stats.bytes_streamed > 0 and (method == "none" or done.stats.accepted > 0)
        entries = [entry for entry in store.linears.values() if entry.module != "lm_head"]
        numbers = sum(-(-entry.shape[0] // 64) * 64 * entry.shape[1] for entry in entries)
        streamed[coding] = sum(part.stored.nbytes for entry in entries for part in entry.parts) * 8 / numbers
        store.verify()
    assert texts[0] == texts[1] == texts[2] == texts[3]
    # and a header a part
    assert 4.5 < streamed["w4"] < 4.6 < streamed["delta"] / 2


def test_experts_in_four_bits_beside_fp8_stream_as_they_are_published(tmp_path: Path) -> None:
    source = tmp_path / "model"
    publish_deepseek_v4(source)
    texts = []
    for options in ({"method": "none", "codec": "raw"}, {"codec": "delta"}, {"codec": "fp8"}):
        with opened(source, context=128, **options) as llm:
            done = [llm.generate(PROMPT, params)[0] for params in (GREEDY, SAMPLED)]
            store = llm.store
        texts.append([text.token_ids for text in done])
        assert min(text.stats.bytes_streamed for text in done) > 0
        assert "method" in options or min(text.stats.accepted for text in done) > 0
        codecs = {entry.spec.module: entry.codec for entry in store.linears.values()}
        assert {codec for path, codec in codecs.items() if ".experts." in path} == {"mxfp4"}
        assert codecs["model.layers.0.self_attn.o_a_proj.weight"] == options["codec"]
        store.verify()
        export(store, tmp_path / str(len(texts)))
        for file in source.iterdir():
            assert (tmp_path / str(len(texts)) / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(text == texts[0] for text in texts) and len(set(texts[0][1])) > 4


def test_exponents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    publish_deepseek_v4(tmp_path)
    made = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.ffn.experts.0.w1"
    for scales, says in ((made[f"{name}.scale"].float(), "exponents for each 16 bytes"), (made[f"{name}.scale"][1:], "has scales")):
        rewrite(tmp_path, {**made, f"{name}.scale": scales.clone()})
        with pytest.raises(CheckpointError, match=says):
            opened(tmp_path)


def test_weights_of_two_forms_have_what_fits_each(tmp_path: Path) -> None:
    """Of a model in FP8 and in codes of four bits, whichever of their codecs was asked for."""
    source = tmp_path / "model"
    publish_compressed(source, "qwen3_moe", "int4")
    made = load_file(source / "model.safetensors")
    config = compressed("fp8")
    config["config_groups"]["group_1"] = {**compressed("int4")["config_groups"]["group_0"], "format": "pack-quantized"}
    for name in [name for name in made if "self_attn" in name and name.endswith("_packed")]:
        path = name.removesuffix("_packed")
        rows, columns = made.pop(f"{path}_shape").tolist()
        del made[name], made[f"{path}_scale"]
        made |= as_published(path, torch.randn(rows, columns) * 0.1, "channels")
    rewrite(source, made, config)
    used = {}
    for coding in ("raw", "fp8", "w4"):
        store = LLM.prepare(source, rows=1, codec=coding, calibrate="none", output=tmp_path / coding)
        kinds = {"experts" if entry.experts else name.rpartition(".")[2]: entry.codec for name, entry in store.linears.items()}
        used[coding] = {kinds[kind] for kind in ("experts", "q_proj", "lm_head")}, kinds["experts"], kinds["q_proj"]
        store.verify()
    assert used["raw"][0] == {"raw"}
    assert used["fp8"] == used["w4"] == ({"fp8", "w4", "delta"}, "w4", "fp8")
