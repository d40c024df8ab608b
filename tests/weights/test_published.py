"""What a config.json says of codes and scales is read, or not; tensors that do not fit it are refused by name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.quantised import compressed, to_fp8, to_int4
from understudy.errors import CheckpointError
from understudy.weights.encoding import check_weight
from understudy.weights.packed import FP8, INT4, MXFP4, Packed
from understudy.weights.published import COMPRESSED, dtype_of, foretold, form_of, in_words, unpacked
from understudy.weights.shards import TensorInfo

FP8_CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
MXFP4_CONFIG = {"quantization_config": {"quant_method": "mxfp4"}}


def infos(made: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, t.dtype, tuple(t.shape), Path("f"), 0, t.nbytes) for name, t in made.items()}


def of(kind: str, **changes: Any) -> dict[str, Any]:
    """A config of compressed-tensors; `changes` are of its weights, or where the name has it, of all."""
    config = copy.deepcopy(compressed(kind))
    own = config["config_groups"]["group_0"]["weights"]
    for name, value in changes.items():
        (own if name in own or name == "actorder" else config)[name] = value
    return {"quantization_config": config}


def test_forms_and_words() -> None:
    assert form_of(FP8_CONFIG) == FP8 and in_words(FP8_CONFIG) == "FP8 in blocks of 32 x 32"
    assert form_of({"text_config": MXFP4_CONFIG}) == MXFP4 and in_words(MXFP4_CONFIG) == "MXFP4"
    assert in_words({"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}) == "FP8"
    assert form_of(of("int4")) == COMPRESSED and in_words(of("int4")) == "INT4 in groups of 32" and in_words(of("fp8")) == "FP8"
    both = of("fp8")
    fours = {**compressed("int4")["config_groups"]["group_0"], "format": "pack-quantized"}
    both["quantization_config"]["config_groups"]["group_1"] = fours
    assert in_words(both) == "FP8 and INT4 in groups of 32"
    nothing: list[dict[str, Any]] = [{}, {"quantization_config": None}, {"quantization_config": {"quant_method": "bitsandbytes"}}]
    assert not any(map(form_of, nothing)) and not any(map(in_words, nothing))


@pytest.mark.parametrize(
    "config",
    [
        of("int4", num_bits=8), of("fp8", symmetric=False), of("int4", actorder="group"),
        of("int4", strategy="tensor", symmetric=False), of("fp8", strategy="block"),
        of("fp8", num_bits=4), of("int4", format="int-quantized"), of("fp8", format="nvfp4-pack-quantized"),
        of("fp8", config_groups={}),
        of("fp8", kv_cache_scheme={"num_bits": 8}), of("int4", transform_config={"a": 1}), {**of("fp8"), "dtype": "float32"},
        of("fp8", config_groups={"group_0": {"weights": None}}), of("fp8", config_groups={"group_0": "odd"}),
    ],
)  # fmt: skip
def test_what_compressed_tensors_may_do_besides_is_not_read(config: dict[str, Any]) -> None:
    assert form_of(config) == "" and in_words(config) == ""


def test_types() -> None:
    assert dtype_of({}) == dtype_of({"dtype": "bfloat16"}) == dtype_of({"dtype": "int8"}) == torch.bfloat16
    assert dtype_of({"torch_dtype": "float16"}) == dtype_of({"text_config": {"dtype": "torch.float16"}}) == torch.float16


def test_weights_take_the_place_of_codes_and_scales() -> None:
    weight = torch.randn(64, 128)
    codes, scales = to_int4(weight)
    own = {"a.weight_packed": codes, "a.weight_scale": scales, "a.weight_shape": torch.tensor([64, 128])}
    made = infos({**own, "b.weight": weight})
    found = unpacked(of("int4"), made)
    assert list(found) == ["a.weight", "b.weight"] and found["b.weight"] is made["b.weight"]
    info = found["a.weight"]
    assert info.shape == (64, 128) and info.dtype == torch.bfloat16 and info.nbytes == 64 * 128 * 2
    assert isinstance(info.packed, Packed) and info.packed.form == INT4 and info.packed.block == (1, 32)
    rows = info.packed.values(codes.view(torch.uint8), scales, 0, torch.bfloat16)
    # as compressed-tensors has them: code and scale multiplied in bfloat16
    nibbles = torch.stack((codes.view(torch.uint8) & 15, codes.view(torch.uint8) >> 4), -1).flatten(-2).to(torch.bfloat16) - 8
    assert torch.equal(rows, nibbles * scales.repeat_interleave(32, 1))
    assert torch.equal(info.packed.codes_of(rows, scales, 0), codes.view(torch.uint8))


def test_fp8_of_compressed_tensors() -> None:
    codes, scales = to_fp8(torch.randn(64, 96), (1, 96))
    made = infos({"a.weight": codes, "a.weight_scale": scales.to(torch.bfloat16), "a.input_scale": torch.ones(1)})
    packed = unpacked(of("fp8"), made)["a.weight"].packed
    assert packed is not None and packed.form == FP8 and packed.block == (1, 96) and not packed.fault
    rows = packed.values(codes.view(torch.uint8), scales.to(torch.bfloat16), 0, torch.bfloat16)
    assert torch.equal(rows, codes.to(torch.bfloat16) * scales.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        (torch.ones(64, 4, dtype=torch.float16), "has scales of float16, where bfloat16 or float32 is needed"),
        (torch.ones(64, 3), r"is \[64, 16\] with scales \[64, 3\], which do not fit"),
        (torch.ones(32, 4), r"with scales \[32, 4\], which do not fit"),
        (torch.ones(64), r"with scales \[64\], which do not fit"),
        (torch.ones(64, 0), "which do not fit"),
        (None, r"has no scales: 'a\.weight_scale' is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(scales: Tensor | None, words: str) -> None:
    made = {"a.weight_packed": torch.zeros(64, 16, dtype=torch.int32)} | ({} if scales is None else {"a.weight_scale": scales})
    info = unpacked(of("int4"), infos(made))["a.weight"]
    with pytest.raises(CheckpointError, match=words):
        check_weight(info, (64, 128))


def test_zero_points_that_all_weights_have_may_not_be_missing() -> None:
    """Codes would be read as if their zero point were the usual one."""
    made = infos({"a.weight_packed": torch.zeros(64, 16, dtype=torch.int32), "a.weight_scale": torch.ones(64, 4)})
    config = of("asymmetric")
    words = r"has no zero points: 'a\.weight_zero_point' is missing\. Get the model again\.$"
    with pytest.raises(CheckpointError, match=words) as refusal:
        check_weight(unpacked(config, made)["a.weight"], (64, 128))
    assert "\n" not in str(refusal.value)
    groups = config["quantization_config"]["config_groups"]
    # of two groups of which one has none, nobody says which one the weight is of
    groups["group_1"] = compressed("int4")["config_groups"]["group_0"]
    packed = unpacked(config, made)["a.weight"].packed
    assert packed is not None and not packed.fault and packed.zeros is None


@pytest.mark.parametrize(
    ("scales", "block", "words"),
    [
        ((3, 2, 4), (32, 32), ""),
        ((3, 64, 1), (1, 128), ""),
        ((3,), (64, 128), ""),
        ((3, 1, 1), (64, 128), ""),
        ((2, 2, 4), None, r"is \[3, 64, 128\] with scales \[2, 2, 4\] of float32, which do not fit"),
        ((3, 2, 3), None, r"scales \[3, 2, 3\] of float32, which do not fit"),
        ((), None, r"with scales \[\] of float32, which do not fit"),
        ((3, 3, 4), None, "in blocks of 24 rows, of which the last of each matrix is cut off: this is not supported"),
    ],
)
def test_matrices_that_are_stacked_in_fp8(scales: tuple[int, ...], block: tuple[int, int] | None, words: str) -> None:
    codes = torch.zeros(3, 64, 128).to(torch.float8_e4m3fn)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [24, 32] if scales == (3, 3, 4) else None}}
    info = unpacked(config, infos({"a.weight": codes, "a.weight_scale_inv": torch.ones(scales)}))["a.weight"]
    assert info.packed is not None and info.shape == (3, 64, 128)
    if block is not None:
        assert info.packed.block == block and not info.packed.fault
        return
    with pytest.raises(CheckpointError, match=words):
        check_weight(info, (192, 128))


def test_matrices_in_mxfp4_are_foretold() -> None:
    info = infos({"e.down_proj": torch.empty(4, 96, 64, dtype=torch.bfloat16)})["e.down_proj"]
    made = foretold(info, (4, 64, 96))
    assert made.shape == (4, 64, 96) and made.nbytes == info.nbytes and made.packed is not None and not made.packed.fault
    assert made.packed.codes.nbytes == 4 * 64 * 48 and made.packed.scales.nbytes == 4 * 64 * 3
