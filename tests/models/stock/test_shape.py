"""The facts read off a config are those that the stock model's attention is called with."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.tiny import COMMON, FAMILIES
from understudy.errors import CheckpointError
from understudy.layer_states import LayerShape
from understudy.models.stock import hf, structure
from understudy.models.stock.shape import ModelShape, cache_dtype

CALLS: dict[int, LayerShape] = {}
# the keys that each layer's attention was given
KEYS: list[torch.Tensor] = []


def noted(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **options: Any) -> Any:
    """An attention that only notes what each layer is called with."""
    window = options.get("sliding_window") or 0
    reads = next((index for index, earlier in enumerate(KEYS) if earlier is key), None)
    KEYS.append(key)
    CALLS[module.layer_idx] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], window, reads)
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def config_of(family: str, **changes: Any) -> Any:
    options = {**COMMON, **FAMILIES.get(family, {}), **changes}
    return AutoConfig.for_model(options.pop("model_type", family), **options)


@pytest.mark.parametrize("family", [*FAMILIES, "starcoder2", "cohere2", "olmo3", "phi3-window"])
def test_each_layer_has_the_shape_its_attention_is_called_with(family: str) -> None:
    changes: dict[str, Any] = {
        "starcoder2": {"sliding_window": 12},
        "cohere2": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "olmo3": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "phi3-window": {"model_type": "phi3", "sliding_window": 12},
    }.get(family, {})
    config = config_of(family, **changes)
    CALLS.clear()
    KEYS.clear()
    model = structure.skeleton(config, torch.float32, hf.register_attention("noted", noted))
    structure.trace(model, structure.streamed_linears(model))
    shape = ModelShape.of(config)
    read = {layer.reads for layer in CALLS.values()}
    called = {index: replace(layer, shared=index in read) for index, layer in CALLS.items()}
    attending = {index: replace(layer, recurrent=None) for index, layer in enumerate(shape.layers) if layer.kv_heads}
    assert attending == called
    kinds = getattr(config, "layer_types", None) or [""] * len(shape.layers)
    assert all((not layer.kv_heads and not layer.recurrent) == (kinds[i] == "mlp") for i, layer in enumerate(shape.layers))
    assert shape.hidden_size == model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    assert shape.vocabulary == model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]


def test_heads_and_what_becomes_of_logits() -> None:
    shape = ModelShape.of(config_of("qwen2"))
    assert (shape.heads, shape.shared_heads, shape.positions, shape.changes_logits) == (4, 2, 512, False)
    assert ModelShape.of(config_of("gemma2")).changes_logits
    assert ModelShape.of(config_of("granite")).changes_logits


def test_layers_may_have_sizes_of_their_own() -> None:
    if not hasattr(AutoConfig.for_model("llama"), "is_heterogeneous"):
        pytest.skip("this transformers has no configs for each layer")
    own = {1: {"head_dim": 32, "num_key_value_heads": 1}}
    shape = ModelShape.of(config_of("llama", head_dim=16, per_layer_config=own))
    assert shape.layers == (LayerShape(2, 16, 16), LayerShape(1, 32, 32), LayerShape(2, 16, 16))
    assert shape.shared_heads == 4 and [layer.numbers for layer in shape.layers] == [64, 64, 64]


def test_layers_that_share_keys_keep_none_of_their_own() -> None:
    kinds = ["sliding_attention", "full_attention"] * 4
    shape = ModelShape.of(config_of("gemma4_unified_text", num_hidden_layers=8, layer_types=kinds, num_kv_shared_layers=3))
    assert [layer.reads for layer in shape.layers] == [None] * 5 + [3, 4, 3]
    assert [layer.numbers for layer in shape.layers] == [128, 64, 128, 64, 128, 0, 0, 0]
    assert [layer.window for layer in shape.layers] == [16, 0] * 4
    held = [640, 0, 640, 0, 0]
    assert [layer.window_slots for layer in shape.layers[:5]] == held, "what others read is held whole, though it slides"


def test_a_layer_whose_keys_could_only_be_those_of_another_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match="num_kv_shared_layers of 4 leaves no 'full_attention' layer"):
        ModelShape.of(config_of("gemma4_unified_text", num_kv_shared_layers=4))


def test_a_window_that_the_model_code_may_not_use_is_not_counted_on() -> None:
    assert ModelShape.of(config_of("llama", sliding_window=8)).layers[0].window == 0


def test_what_recurs_or_slides_does_not_hold_a_whole_text() -> None:
    families = {name: ModelShape.of(config_of(name)) for name in ("llama", "gemma2", "qwen3_next")}
    assert [shape.recurs for shape in families.values()] == [False, False, True]
    assert [shape.holds_whole(4096) for shape in families.values()] == [True, False, False]
    assert families["gemma2"].holds_whole(64), "windows are longer than that"


def test_float16_models_keep_float32() -> None:
    assert cache_dtype(torch.float16) == torch.float32
    assert cache_dtype(torch.bfloat16) == torch.bfloat16
