"""The MTP layer of a checkpoint, as each family publishes it, computes what an independent program of it computes; one that is not
whole, or that cannot be run, is refused by name."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import MtpLayer

from tests.heads.golden import assert_golden
from tests.mtp import (
    MTP,
    MTP_MIXTURES,
    SEVERAL,
    mtp_tensors,
    prefix_of,
    publish_mtp,
    quantise_mtp,
    several_tensors,
    states,
    states_of_several,
)
from tests.quantised import reference
from tests.tiny import opened, save, stock
from understudy.errors import CheckpointError
from understudy.heads import Places
from understudy.heads.files import head_bytes
from understudy.heads.formats import mtp
from understudy.heads.held import Holding
from understudy.heads.layers import layer_shapes
from understudy.heads.source import Bearer
from understudy.models.stock.configuration import config_of
from understudy.sources import layout_of
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.entries import Stored
from understudy.weights.export import export
from understudy.weights.store import Store

COUNT = 30


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Store, Any]]:
    """By family: a Store of its published checkpoint, and the stock model."""
    made: dict[str, tuple[Store, Any]] = {}

    def store_of(family: str) -> tuple[Store, Any]:
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            model = publish_mtp(place / "model", family, torch.float32)
            with opened(place / "model", method="none", output=place / "store") as llm:
                made[family] = llm.store, model
        return made[family]

    return store_of


def source(store: Store) -> dict[str, Tensor]:
    return load_file(store.path.parent / "model" / "model-mtp.safetensors")


def whole(store: Store, family: str) -> dict[str, Tensor]:
    """The same, and the model's own norm where the layer has none."""
    form = MTP[family]
    own = load_file(store.path.parent / "model" / "model.safetensors") if form.norm_of_model else {}
    return source(store) | {name: tensor for name, tensor in own.items() if name == form.norm}


def names_of(layer: mtp.MtpSource) -> list[str]:
    """The checkpoint's tensors that it is made of."""
    return [name for names in layer.tensors.values() for name in names]


@torch.no_grad()
def pairs(model: Any) -> tuple[Tensor, Tensor]:
    """Of a random text: the last hidden states at each token but the last, and the next tokens' embeddings, [n, size] each."""
    ids = torch.randint(0, 256, (1, COUNT + 1), generator=torch.Generator().manual_seed(5))
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
    return hidden[:-1], model.get_input_embeddings()(ids)[0, 1:]


def causal(window: int) -> Tensor:
    ago = torch.arange(COUNT)[:, None] - torch.arange(COUNT)
    return (ago >= 0) & (ago < (window or COUNT))


@pytest.mark.parametrize("family", MTP)
def test_states_and_those_that_follow_them_are_the_published_layers(family: str, stores: Any) -> None:
    store, model = stores(family)
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None and layer.config.taps == (-1,)
    (shape,) = layer_shapes(layer.config)
    assert shape.window == MTP[family].window
    head = layer.load(Holding(torch.float32))
    hidden, embedded = pairs(model)
    places = Places(torch.arange(COUNT)[None], causal(shape.window))
    expected = states(family, model.config, whole(store, family), hidden, embedded)
    found = head.begin(hidden[None, :, None], embedded[None], places)[0]
    assert torch.allclose(found, expected, atol=2e-5), float((found - expected).abs().max())
    assert torch.equal(head.features(found, 0), found) and head.output is None
    again = states(family, model.config, whole(store, family), expected[:-1], embedded[1:])
    places = Places(torch.arange(COUNT - 1)[None], causal(shape.window)[1:, 1:])
    assert torch.allclose(head.follow(expected[None, :-1], embedded[None, 1:], 1, places)[0], again, atol=2e-5)


@pytest.mark.parametrize("family", MTP)
def test_a_tree_that_is_drafted_has_the_states_of_its_paths_alone(family: str, stores: Any) -> None:
    """A text is read in pieces, and keys and values are in a cache."""
    store, model = stores(family)
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None
    tensors = whole(store, family)

    def reference(hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
        """Each state is the hidden state before the next token of the path; the whole is run anew for it."""
        before, features = hidden[:, 0], torch.zeros(0, hidden.shape[-1])
        for token in (*path, None):
            features = torch.cat((features, states(family, model.config, tensors, before, embedded)[-1:]))
            if token is not None:
                before, embedded = torch.cat((before, features[-1:])), torch.cat((embedded, token[None]))
        return features

    assert_golden(layer.load(Holding(torch.float32)), reference, depth=4)


@pytest.fixture(scope="module", params=SEVERAL)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Store, Any, dict[str, Tensor]]:
    """A family, a Store of its checkpoint with several layers, the stock model, and the tensors of the layers."""
    family, place = request.param, tmp_path_factory.mktemp(request.param)
    tensors = several_tensors(family, torch.float32, stock(family, torch.float32, **MTP[family].changes))
    changes = {"num_nextn_predict_layers": SEVERAL[family]} if "num_nextn_predict_layers" in MTP[family].changes else {}
    model = publish_mtp(place / "model", family, torch.float32, tensors, **changes)
    with opened(place / "model", method="none", output=place / "store") as llm:
        return family, llm.store, model, tensors


def test_each_of_several_layers_predicts_one_token_further(several: tuple[str, Store, Any, dict[str, Tensor]]) -> None:
    family, store, model, tensors = several
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None and layer.config.heads == layer.config.layers == SEVERAL[family]

    def reference(hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
        return states_of_several(family, model.config, tensors, hidden[:, 0], embedded, path)

    assert_golden(layer.load(Holding(torch.float32)), reference, depth=SEVERAL[family] - 1)


def test_all_tensors_of_several_layers_are_held(several: tuple[str, Store, Any, dict[str, Tensor]], tmp_path: Path) -> None:
    family, store, model, tensors = several
    layer = mtp.found(Bearer.of_store(store, model.config))
    checkpoint = Checkpoint.open(store.path.parent / "model")
    foretold = mtp.found(Bearer.foretold(checkpoint.name, model.config, checkpoint.tensors, layout_of(checkpoint, tmp_path)))
    assert layer is not None and foretold is not None
    assert (foretold.config, foretold.tensors) == (layer.config, layer.tensors)
    tables = ("embed_tokens.weight", "shared_head.head.weight")
    assert sorted(names_of(layer)) == sorted(name for name in tensors if not name.endswith(tables))
    held = layer.load(Holding(torch.float32)).state_dict()
    for own, names in layer.tensors.items():
        assert torch.equal(held[own].flatten(), torch.cat([tensors[name].flatten() for name in names])), own
    assert len(layer_shapes(layer.config)) == SEVERAL[family]


def test_several_layers_with_tables_of_their_own_are_refused(several: tuple[str, Store, Any, dict[str, Tensor]]) -> None:
    family, store, model, _ = several
    if not family.startswith("deepseek"):
        pytest.skip("its layers have no tables")
    name = f"{prefix_of(family, 1)}embed_tokens.weight"
    other = replace(store.extra[name], checksum="")
    said = refused(store, model, {**store.extra, name: other})
    assert f"brings 2 layers for multi-token prediction, and tables of their own, such as '{name}'; not" in said


@pytest.mark.parametrize("family", [family for family in MTP if family not in MTP_MIXTURES])
def test_it_computes_what_transformers_does(family: str, stores: Any) -> None:
    """Of layers that take the place of one in a model, transformers has a class; it does not find the names of all families."""
    store, model = stores(family)
    text = copy.deepcopy(model.config.get_text_config(decoder=True))
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None
    text.layer_types = layer.config.layer.get("layer_types", [])[-1:] or None
    text._attn_implementation = "eager"
    decoder = model.get_decoder()
    theirs = MtpLayer(text, type(decoder.layers[0]), type(decoder.norm), 0)
    names = {"embedding_norm.0": "enorm", "hidden_norm.0": "hnorm", "join.0": "eh_proj", "norm.0": "post_norm"}
    names["layers.0"] = "mtp_block"
    tensors = source(store)
    for own, published in layer.tensors.items():
        module = next(name for name in names if own.startswith(f"{name}."))
        (only,) = published
        theirs.get_parameter(own.replace(module, names[module], 1)).data = tensors[only]
    hidden, embedded = pairs(model)
    rope = decoder.rotary_emb(embedded[None], torch.arange(COUNT)[None])
    mask = torch.where(causal(MTP[family].window), 0.0, float("-inf"))[None, None]
    with torch.no_grad():
        expected = theirs(embedded[None], hidden[None], rope, mask, torch.arange(COUNT)[None], None)[0]
    assert torch.allclose(states(family, model.config, tensors, hidden, embedded), expected, atol=2e-5)


@pytest.mark.parametrize("family", MTP)
def test_what_it_takes_in_memory_is_its_tensors(family: str, stores: Any) -> None:
    store, model = stores(family)
    layer = mtp.found(Bearer.of_store(store, model.config))
    names = {name for name in whole(store, family) if not name.endswith(("embed_tokens.weight", "shared_head.head.weight"))}
    assert layer is not None and set(names_of(layer)) == names, "copies of the model's own tables are its own"
    numbers = {name: {**store.extra, **store.shared}[name].nbytes // 4 for name in names}
    # MiniMax-M2's are of the model's own type
    chooses = sum(count for name, count in numbers.items() if name.endswith("correction_bias") and family != "minimax_m2")
    assert head_bytes(layer.config, torch.bfloat16) == 2 * sum(numbers.values()) + 2 * chooses


def test_a_store_of_such_a_checkpoint_gives_its_files_back(stores: Any, tmp_path: Path) -> None:
    store, _ = stores("glm_ocr")
    export(store, tmp_path / "out")
    for file in (store.path.parent / "model").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name




def test_tables_of_its_own_are_read(stores: Any) -> None:
    store, model = stores("glm_ocr")
    prefix = MTP["glm_ocr"].layer
    names = [f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight"]
    # each is not the model's table, but the other one
    swapped = replace(store, extra={**store.extra, names[0]: store.extra[names[1]], names[1]: store.extra[names[0]]})
    layer = mtp.found(Bearer.of_store(swapped, model.config))
    assert layer is not None and layer.config.own_embedding and set(names) < set(names_of(layer))
    head = layer.load(Holding(torch.float32))
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert head.embedding is not None and torch.equal(head.embedding, output)
    x = torch.randn(1, 2, 64)
    assert torch.allclose(head.scores(x, 0, lambda _: torch.zeros(0)), x @ embedding.T, atol=1e-5)


@pytest.mark.parametrize("family", MTP)
def test_it_is_foretold_from_a_checkpoint_that_is_not_prepared(family: str, stores: Any, tmp_path: Path) -> None:
    store, model = stores(family)
    checkpoint = Checkpoint.open(store.path.parent / "model")
    foretold = mtp.found(Bearer.foretold(checkpoint.name, model.config, checkpoint.tensors, layout_of(checkpoint, tmp_path)))
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert foretold is not None and layer is not None
    assert (foretold.config, foretold.tensors) == (layer.config, layer.tensors)


def test_a_checkpoint_without_one_has_none(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "qwen2")
    with opened(tmp_path / "model", method="none", output=tmp_path / "store") as llm:
        assert mtp.found(Bearer.of_store(llm.store, model.config)) is None


def test_one_of_another_kind_is_refused_by_name() -> None:
    model = stock("qwen2")
    bearer = Bearer("It", model.config, {"model.mtp_strange.0.weight": (64,)}, frozenset(), frozenset())
    with pytest.raises(CheckpointError, match=r"^It brings a layer .* not known, which 'model\.mtp_strange\.0\.weight' is of"):
        mtp.found(bearer)


def test_blocks_that_are_attention_or_experts_alone_are_refused() -> None:
    """As Nemotron-H publishes them."""
    names = "mtp.layers.0.eh_proj.weight", "mtp.layers.0.mixer.q_proj.weight", "mtp.layers.1.mixer.gate.weight"
    bearer = Bearer("It", stock("nemotron_h-experts").config, dict.fromkeys(names, (64, 64)), frozenset(), frozenset())
    with pytest.raises(CheckpointError, match=r"^Layers of NemotronHModel cannot be those of a head; this is not supported yet\.$"):
        mtp.found(bearer)


def test_it_is_of_the_kind_that_the_config_names_though_no_layer_of_the_model_is(stores: Any) -> None:
    store, _ = stores("mellum")
    kinds = ["full_attention"] * 3
    config = stock("mellum", **{**MTP["mellum"].changes, "layer_types": kinds}).config
    assert config.layer_types == kinds and config.mtp_layer_types == ["sliding_attention"]
    layer = mtp.found(Bearer.of_store(store, config))
    assert layer is not None and layer_shapes(layer.config)[0].window == MTP["mellum"].window > 0


def test_a_checkpoint_is_looked_through_once(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = stores("qwen2")
    bearer = Bearer.of_store(store, model.config)
    layer = mtp.found(bearer)
    monkeypatch.setattr(mtp, "named", lambda *_: pytest.fail("it is known already"))
    assert layer is not None and mtp.found(bearer) is layer


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe"])
def test_experts_may_lie_in_one_tensor_or_in_one_for_each(family: str, stores: Any, tmp_path: Path) -> None:
    model, found = stores(family)[1], []
    for apart in (False, True):
        tensors = mtp_tensors(family, torch.float32, model, apart)
        assert ("mtp.layers.0.mlp.experts.7.up_proj.weight" in tensors) == apart
        publish_mtp(tmp_path / f"{apart}", family, torch.float32, tensors)
        with opened(tmp_path / f"{apart}", method="none", output=tmp_path / f"store-{apart}") as llm:
            layer = mtp.found(Bearer.of_store(llm.store, model.config))
        assert layer is not None
        found.append(layer.load(Holding(torch.float32)).state_dict())
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def refused(store: Store, model: Any, extra: dict[str, Stored]) -> str:
    with pytest.raises(CheckpointError) as refusal:
        mtp.found(Bearer.of_store(replace(store, extra=extra), model.config))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(("family", "lacking"), [
    ("qwen3_5_text", "mtp.norm.weight"),
    ("qwen3_5", "mtp.layers.0.self_attn.q_norm.weight"),
    ("exaone4_5", "mtp.pre_fc_norm_hidden.weight"),
    ("glm4", "model.layers.3.eh_proj.weight"),
    ("glm_ocr", "model.language_model.layers.3.mlp.down_proj.weight"),
])  # fmt: skip
def test_one_that_is_not_whole_is_refused(family: str, lacking: str, stores: Any) -> None:
    store, model = stores(family)
    extra = {name: stored for name, stored in store.extra.items() if name != lacking}
    assert len(extra) < len(store.extra)
    assert f"there is no tensor {lacking!r}" in refused(store, model, extra)


def test_what_cannot_be_run_is_refused_by_name(stores: Any) -> None:
    store, model = stores("qwen3_5_text")
    some = store.extra["mtp.norm.weight"]
    for name in ("mtp.layers.0.mlp.experts.3.up_proj.weight", "mtp.layers.0.mlp.gate.weight"):
        assert f"{name!r} that fits nothing" in refused(store, model, {**store.extra, name: some}), "the model has no experts"
    further = refused(store, model, {**store.extra, "mtp.layers.1.input_layernorm.weight": some})
    assert "is not whole: there is no tensor 'mtp.layers.1.mlp.down_proj.weight'" in further
    assert "of 3 layers there is no 2" in refused(store, model, {**store.extra, "mtp.layers.2.input_layernorm.weight": some})
    assert "'mtp.strange.weight' that fits nothing" in refused(store, model, {**store.extra, "mtp.strange.weight": some})
    wrong = replace(store.extra["mtp.fc.weight"], shape=(64, 64))
    assert "'mtp.fc.weight' has the shape [64, 64], not [64, 128]" in refused(store, model, {**store.extra, "mtp.fc.weight": wrong})


def test_experts_that_lack_or_are_too_many_are_refused_by_name(stores: Any) -> None:
    store, model = stores("qwen3_next")
    before = "mtp.layers.0.mlp.experts."
    whole = dict(store.extra)
    for lacking in (f"{before}5.up_proj.weight", f"{before}0.down_proj.weight", f"{before}7.gate_proj.weight"):
        left = {name: stored for name, stored in whole.items() if name != lacking}
        assert f"is not whole: there is no tensor {lacking!r}. Get the" in refused(store, model, left)
    left = {name: stored for name, stored in whole.items() if not name.startswith(f"{before}3.")}
    assert len(left) == len(whole) - 3 and f"there is no tensor '{before}3." in refused(store, model, left)
    left = {name: stored for name, stored in whole.items() if "up_proj" not in name or "experts" not in name}
    assert "there is no tensor 'mtp.layers.0.mlp.experts.gate_up_proj'" in refused(store, model, left)
    more = {f"{before}8.{kind}_proj.weight": whole[f"{before}7.{kind}_proj.weight"] for kind in ("gate", "up", "down")}
    assert f"with a tensor '{before}8.down_proj.weight' that fits nothing in it" in refused(store, model, {**whole, **more})
    scale = {f"{before}1.up_proj.weight_scale_inv": whole["mtp.norm.weight"]}
    assert "weight_scale_inv' that fits nothing in it" in refused(store, model, {**whole, **scale})
    name = f"{before}2.gate_proj.weight"
    wrong = {name: replace(whole[name], shape=(32, 64))}
    assert f"{name!r} has the shape [32, 64], not [64, 64]" in refused(store, model, {**whole, **wrong})
    store, model = stores("qwen3_5_moe_text")
    name = f"{before}gate_up_proj"
    wrong = {name: replace(store.extra[name], shape=(7, 128, 64))}
    assert f"{name!r} has the shape [7, 128, 64], not [8, 128, 64]" in refused(store, model, {**store.extra, **wrong})


def test_tensors_of_unlike_types_are_refused(stores: Any) -> None:
    store, model = stores("glm4_moe")
    name = "model.layers.3.mlp.experts.4.down_proj.weight"
    other = replace(store, extra={**store.extra, name: replace(store.extra[name], dtype=torch.bfloat16)})
    layer = mtp.found(Bearer.of_store(other, model.config))
    assert layer is not None
    with pytest.raises(CheckpointError, match=r"in which 'model\.layers\.3\.mlp\.experts\.4\S+ and \S+ are of unlike"):
        layer.load(Holding(torch.float32))


@pytest.mark.parametrize("bits", [16, 8])
def test_values_that_are_no_numbers_are_refused(bits: int, tmp_path: Path) -> None:
    tensors = mtp_tensors("qwen3_next", torch.bfloat16, stock("qwen3_next", torch.bfloat16))
    tensors["mtp.layers.0.mlp.experts.6.up_proj.weight"][3, 5] = torch.nan
    publish_mtp(tmp_path / "model", "qwen3_next", torch.bfloat16, tensors)
    with pytest.raises(CheckpointError, match=r"experts\.0\.gate_proj\.weight', or one of 15 beside it, has NaN or inf"):
        opened(tmp_path / "model", method=f"mtp:bits={bits}", output=tmp_path / "store")


def quantised(directory: Path, family: str, form: str) -> None:
    publish_mtp(directory, family, torch.bfloat16)
    for file in ("model.safetensors", "model-mtp.safetensors"):
        quantise_mtp(directory, file, form)


def spread(scales: Tensor, shape: torch.Size) -> Tensor:
    """Scales of blocks, or of rows, or of groups, for each number."""
    high, wide = (length // count for length, count in zip(shape, scales.shape, strict=True))
    return scales.float().repeat_interleave(high, 0).repeat_interleave(wide, 1)


def stood_for(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The matrix `name` of a checkpoint that is published quantised."""
    if (path := name.removesuffix("weight")) + "qweight" in tensors:
        own = {end: tensors[path + end] for end in ("qweight", "qzeros", "scales")}
        return reference(own, "awq", torch.bfloat16)
    if f"{name}_packed" in tensors:
        words, scales = tensors[f"{name}_packed"], tensors[f"{name}_scale"]
        codes = (words[..., None] >> torch.arange(0, 32, 4) & 15).flatten(-2) - 8
        if (zeros := tensors.get(f"{name}_zero_point")) is not None:
            each = (zeros[:, None] >> torch.arange(0, 32, 4)[:, None] & 15).flatten(0, 1) - 8
            codes = codes - each[: len(codes)].repeat_interleave(codes.shape[1] // each.shape[1], 1)
        return (codes.float() * spread(scales, codes.shape)).to(torch.bfloat16)
    scales = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale"))
    return tensors[name] if scales is None else (tensors[name].float() * spread(scales, tensors[name].shape)).to(torch.bfloat16)


@pytest.mark.parametrize(("family", "form"), [
    ("deepseek_v3", "fp8"), ("qwen3_next", "fp8"), ("glm4_moe", "channels"), ("glm4", "int4"), ("glm4", "asymmetric"),
    ("glm4", "awq"),
])  # fmt: skip
def test_weights_that_are_published_as_codes_are_what_those_stand_for(family: str, form: str, tmp_path: Path) -> None:
    quantised(tmp_path / "model", family, form)
    checkpoint = Checkpoint.open(tmp_path / "model")
    with opened(tmp_path / "model", method="none", output=tmp_path / "store") as llm:
        store, config = llm.store, config_of(llm.store.path)
    layer = mtp.found(Bearer.of_store(store, config))
    foretold = mtp.found(Bearer.foretold(checkpoint.name, config, checkpoint.tensors, layout_of(checkpoint, tmp_path / "known")))
    assert layer is not None and foretold is not None
    assert (foretold.config, foretold.tensors) == (layer.config, layer.tensors)
    published, held = load_file(tmp_path / "model" / "model-mtp.safetensors"), layer.load(Holding(torch.bfloat16)).state_dict()
    quantities = 0
    for own, names in layer.tensors.items():
        found = torch.cat([stood_for(published, name) for name in names])
        quantities += sum(name not in published or published[name].dtype == torch.float8_e4m3fn for name in names)
        assert torch.equal(held[own].reshape(found.shape).to(found.dtype), found), own
    assert quantities >= 6, "the layer's matrices are codes"


def test_codes_without_scales_are_refused_before_any_work(tmp_path: Path) -> None:
    quantised(tmp_path / "model", "deepseek_v3", "fp8")
    tensors = load_file(tmp_path / "model" / "model-mtp.safetensors")
    lacking = "model.layers.3.mlp.experts.2.up_proj.weight_scale_inv"
    del tensors[lacking]
    save_file(tensors, tmp_path / "model" / "model-mtp.safetensors", {"format": "pt"})
    place = tmp_path / "model" / "model.safetensors.index.json"
    place.write_text(place.read_text().replace(f'"{lacking}": "model-mtp.safetensors", ', ""))
    with pytest.raises(CheckpointError, match=rf"'model\.layers\.3\.\S+up_proj\.weight' has no scales: '{lacking}' is missing"):
        opened(tmp_path / "model", method="mtp", output=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "glm4_moe_lite"])
def test_what_chooses_experts_is_held_as_the_model_holds_it(family: str, stores: Any) -> None:
    store, model = stores(family)
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None
    head = layer.load(Holding(torch.bfloat16))
    types = {name: tensor.dtype for name, tensor in head.state_dict().items()}
    (bias,) = (name for name in types if name.endswith("correction_bias"))
    assert types[bias] == torch.float32 and {*types.values()} == {torch.float32, torch.bfloat16}
    assert sum(kind == torch.float32 for kind in types.values()) == 1
    assert torch.equal(head.state_dict()[bias], source(store)[layer.tensors[bias][0]])


def test_the_kind_of_layer_is_the_one_that_its_tensors_are(stores: Any) -> None:
    """The model's first layers are of another kind than its MTP layer."""
    store, model = stores("qwen3_5")
    config = config_of(store.path).get_text_config(decoder=True)
    layer = mtp.found(Bearer.of_store(store, model.config))
    assert layer is not None and layer.config.layer["layer_types"][-1] == "full_attention" != config.layer_types[0]
