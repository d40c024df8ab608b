"""What GPTQ and AWQ publish is read as transformers multiplies by it; what is not read, and what does not fit, is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.quantised import reference, to_awq, to_gptq
from understudy.errors import CheckpointError
from understudy.weights.by_columns import unread
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.encoding import check_weight
from understudy.weights.packed import INT4, as_published
from understudy.weights.published import form_of, in_words, transposed

HALF, BRIEF = torch.float16, torch.bfloat16


def settings(method: str, **changes: Any) -> dict[str, Any]:
    return {"quant_method": method, "bits": 4, "group_size": 32, **changes}


def opened(directory: Path, made: dict[str, Tensor], how: dict[str, Any], dtype: torch.dtype = HALF) -> Checkpoint:
    save_file({f"x.{name}": tensor.contiguous() for name, tensor in made.items()}, directory / "model.safetensors")
    named = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps({"model_type": "x", "dtype": named, "quantization_config": how}))
    return Checkpoint.open(directory)


def weight(rows: int = 48, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7)) * 0.1


@pytest.mark.parametrize("of_scales", [HALF, BRIEF, torch.float32])
@pytest.mark.parametrize("dtype", [HALF, BRIEF])
@pytest.mark.parametrize("kind", ["awq", "gptq", "gptq_v2", "gptq symmetric", "gptq in an order"])
def test_weights_are_those_that_transformers_multiplies_by(
    kind: str, dtype: torch.dtype, of_scales: torch.dtype, tmp_path: Path
) -> None:
    method, less = kind.split()[0].removesuffix("_v2"), int(kind.startswith("gptq") and kind != "gptq_v2")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)) if "order" in kind else None
    if method == "awq":
        made, how = to_awq(weight(), dtype=of_scales), settings("awq", version="gemm", zero_point=True)
    else:
        made = to_gptq(weight(), dtype=of_scales, less=less, symmetric="symmetric" in kind, order=order)
        how = settings("gptq", desc_act=order is not None, checkpoint_format="gptq" if less else "gptq_v2")
    checkpoint, expected = opened(tmp_path, made, how, dtype), reference(made, method, dtype, less)
    assert (expected.float() - weight()).abs().max() < 0.05
    info = checkpoint.info("x.weight")
    assert info.shape == (48, 96) and info.packed is not None and transposed(checkpoint.config)
    # groups in any order are no neighbours
    assert info.form == ("" if order is not None else INT4)
    for first, last in ((0, 48), (5, 31), (47, 48)):
        assert torch.equal(checkpoint.read_rows("x.weight", first, last).view(torch.int16), expected[first:last].view(torch.int16))
    assert {each.name for each in info.published} == {f"x.{name}" for name in made}


def test_published_words_come_of_all_rows(tmp_path: Path) -> None:
    made = to_awq(weight())
    info = opened(tmp_path, made, settings("awq")).info("x.weight")
    assert info.packed is not None
    codes = torch.randint(0, 256, (48, 48), dtype=torch.uint8)
    assert as_published(info.packed, codes).shape == made["qweight"].shape


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (settings("awq", bits=3), "bits is 3"), (settings("awq", version="gemv"), "version is gemv"),
        (settings("awq", version="GEMM", backend="llm-awq"), "version is llm-awq"),
        (settings("awq", zero_point=False), "no zero points"),
        (settings("gptq", bits=8), "bits is 8"), (settings("gptq", checkpoint_format="marlin"), "format is marlin"),
        (settings("gptq", is_marlin_format=True), "format is marlin"), (settings("gptq", dynamic={"+:a": {"bits": 8}}), "dynamic"),
        (settings("gptq", rotation="hadamard"), "rotated"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(how: dict[str, Any], why: str) -> None:
    assert why in unread("llama", how, HALF) and not form_of({"dtype": "float16", "quantization_config": how})


def test_what_is_read_is_named() -> None:
    for how in (settings("awq", version="GEMM"), settings("gptq", dynamic={"-:lm_head": {}}), settings("gptq", desc_act=True)):
        assert not unread("llama", how, HALF)
    assert in_words({"dtype": "float16", "quantization_config": settings("awq")}) == "AWQ in groups of 32"
    assert in_words({"dtype": "float16", "quantization_config": settings("gptq", group_size=-1)}) == "GPTQ"
    assert "float32" in unread("llama", settings("gptq"), torch.float32) and unread("falcon", settings("awq"), HALF)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("gptq", {"qzeros": None}, r"x\.qweight has no zero points: 'x\.qzeros' is missing\. Get the model again\.$"),
        ("gptq", {"scales": None}, r"has no scales: 'x\.scales' is missing"),
        ("gptq", {"scales": torch.ones(7, 48).half()}, r"with scales \[7, 48\] .* do not fit"),
        ("awq", {"scales": torch.ones(3, 40).half()}, r"with scales \[3, 40\] .* do not fit"),
        ("awq", {"qzeros": torch.ones(3, 5, dtype=torch.int32)}, r"zero points \[3, 5\], which do not fit"),
        ("gptq", {"qzeros": torch.ones(3, 6)}, "do not fit"),
        ("gptq", {"g_idx": torch.zeros(95, dtype=torch.int32)}, r"groups \[95\] of int32, where \[96\] of int32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(method: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {**(to_awq(weight()) if method == "awq" else to_gptq(weight())), **changes}
    info = opened(tmp_path, {name: each for name, each in made.items() if each is not None}, settings(method)).info("x.weight")
    with pytest.raises(CheckpointError, match=words) as refusal:
        check_weight(info, info.shape)
    assert "\n" not in str(refusal.value)


def test_groups_that_are_none_are_refused(tmp_path: Path) -> None:
    made = to_gptq(weight(), order=torch.arange(96))
    made["g_idx"][7] = 3
    with pytest.raises(CheckpointError, match=r"x\.g_idx names groups beyond the 3 there are"):
        opened(tmp_path, made, settings("gptq")).read("x.weight")
