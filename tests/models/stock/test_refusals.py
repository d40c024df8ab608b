"""What cannot be run exactly is refused by its config alone, in one line that names it."""

import pytest
import torch

from tests.quantised import compressed
from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models.stock import structure
from understudy.models.stock.refusals import refuse_unsupported
from understudy.models.streamed import attention_name


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "gemma4_text", "use_bidirectional_attention": "all"}, "later tokens"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "recurrent"),
        ({"model_type": "mamba2"}, "recurrent"),
        ({"model_type": "rwkv"}, "recurrent"),
        # Mamba-1, lightning attention and shared attention blocks under the names of what runs
        ({"model_type": "jamba", "num_experts": 1, "mamba_d_state": 16, "layer_types": ["linear_attention"]}, "recurrent"),
        ({"model_type": "minimax", "layer_types": ["full_attention", "linear_attention"]}, r"recurrent.*\(linear_attention\)"),
        ({"model_type": "zamba", "n_mamba_heads": 8, "layer_types": ["hybrid"]}, r"recurrent.*\(hybrid\)"),
        ({"model_type": "recurrent_gemma", "block_types": ["recurrent", "attention"]}, "recurrent"),
        (
            {"model_type": "gemma3", "vision_config": {"hidden_size": 8}, "text_config": {"hidden_size": 8}},
            "multimodal",
        ),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "minimax_m3_vl_text", "layer_types": ["full_attention", "minimax_m3_sparse"]}, "attention is sparse"),
        ({"model_type": "qwen4_exp_text", "layer_types": ["indexed_attention"]}, "gives no sizes .such as indexer_compress_ratio"),
        ({"model_type": "odd", "layer_types": ["compressed_sparse_attention"]}, "attention is sparse"),
    ],
)
def test_what_cannot_run_exactly_is_refused_by_name(config: dict[str, object], word: str) -> None:
    with pytest.raises(CheckpointError, match=word) as refusal:
        refuse_unsupported(config)
    assert repr(config["model_type"]) in str(refusal.value) and "\n" not in str(refusal.value)


def test_images_that_look_ahead_are_no_obstacle() -> None:
    refuse_unsupported({"model_type": "gemma4_text", "use_bidirectional_attention": "vision"})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3_moe", "num_experts": 8},
        {"model_type": "gemma4_text", "num_experts": 128, "enable_moe_block": True},
        {"model_type": "nemotron_h", "mamba_num_heads": 8, "layer_types": ["linear_attention", "mlp", "moe", "full_attention"]},
        {"model_type": "granitemoehybrid", "num_local_experts": 8, "mamba_n_heads": 4, "layer_types": ["linear_attention"]},
        {"model_type": "qwen3_next", "num_experts": 8, "linear_num_value_heads": 4, "layer_types": ["linear_attention"]},
    ],
    ids=lambda config: config["model_type"],
)
def test_experts_are_no_obstacle(config: dict[str, object]) -> None:
    refuse_unsupported(config)


@pytest.mark.parametrize("where", ["wrapper", "text"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 3}, "GPTQ, bits is 3"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ, its version is gemv"),
        ({"quant_method": "a-new-one"}, "a-new-one"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_algo": "NVFP4"}, "NVFP4"),
        ({"bits": 4}, "not named"),
    ],
)
def test_quantised_weights_are_named_by_their_method(settings: dict[str, object], named: str, where: str) -> None:
    wrapper, text = {"model_type": "gemma3"}, {"model_type": "gemma3_text"}
    (wrapper if where == "wrapper" else text)["quantization_config"] = settings  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=rf"'gemma3' model are quantised \(.*{named}\).*in bfloat16") as refusal:
        refuse_unsupported(wrapper, text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("where", ["wrapper", "text"])
@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None, "expert_dtype": "fp8"},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        compressed("fp8"),
        compressed("int4"),
        compressed("asymmetric"),
        {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
        {"quant_method": "gptq", "bits": 4, "desc_act": True},
    ],
)
def test_what_is_read_is_no_obstacle(settings: dict[str, object], where: str) -> None:
    wrapper, text = {"model_type": "gemma3"}, {"model_type": "gemma3_text"}
    (wrapper if where == "wrapper" else text)["quantization_config"] = settings  # type: ignore[assignment]
    refuse_unsupported(wrapper, text)


@pytest.mark.parametrize(
    ("more", "named"),
    [({"expert_dtype": "nvfp4"}, "expert_dtype is 'nvfp4'"), ({"modules_to_convert": ["table"]}, "modules_to_convert")],
)
def test_what_fp8_says_of_some_weights_alone_is_named(more: dict[str, object], named: str) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], **more}
    with pytest.raises(CheckpointError, match=rf"Some weights of this 'deepseek_v4' model are quantised \({named}"):
        refuse_unsupported({"model_type": "deepseek_v4", "quantization_config": settings})


def test_quantised_weights_of_mlx_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"'llama' model are quantised \(affine\).*in bfloat16"):
        refuse_unsupported({"model_type": "llama", "quantization": {"group_size": 64, "bits": 4, "mode": "affine"}})


@pytest.mark.parametrize("packed", ["qweight", "weight_packed", "W_q"])
def test_quantised_weights_of_which_no_config_tells_are_named(packed: str) -> None:
    model = stock("llama")
    held = {name: tensor for name, tensor in model.state_dict().items() if name != "model.layers.1.mlp.up_proj.weight"}
    held[f"model.layers.1.mlp.up_proj.{packed}"] = torch.zeros(8, 64, dtype=torch.int32)
    with pytest.raises(CheckpointError, match=rf"are quantised \(it has 'model\.layers\.1\.mlp\.up_proj\.{packed}' for"):
        structure.layout(structure.skeleton(model.config, torch.float32, attention_name()), held)
