"""Weights of codes and scales are those that transformers makes, bit for bit, and tell the codes again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.quantised import packed, to_fp8, to_mxfp4
from understudy.errors import CheckpointError
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.encoding import check_weight
from understudy.weights.export import export
from understudy.weights.packed import INT4, MXFP4, _code_of_steps, _pairs_of_values, _powers, _values, factors
from understudy.weights.prepare import estimate, prepare
from understudy.weights.published import unpacked
from understudy.weights.recipe import Recipe

from .made import layout, tensors, write

TYPES = [torch.bfloat16, torch.float16, torch.float32]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def bytes_of(shape: tuple[int, ...], seed: int, nans: bool = True) -> Tensor:
    codes = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return codes if nans else torch.where(codes & 127 == 127, 0, codes)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(TYPES[::2]),
    st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e8m0fnu, torch.uint8]),
    st.sampled_from([(1, 32), (32, 32), (96, 1), (48, 160), (96, 160)]),
    st.integers(0, 95),
    st.integers(1, 96),
)
def test_fp8_of_any_kind(
    dtype: torch.dtype, kind: torch.dtype, of_scales: torch.dtype, block: tuple[int, int], first: int, count: int
) -> None:
    count = min(count, 96 - first)
    codes = bytes_of((96, 160), 0, nans=False)
    codes = torch.where(codes & 124 == 124, 1, codes) if kind == torch.float8_e5m2 else codes
    high, wide = 96 // block[0], 160 // block[1]
    scales = torch.rand(high, wide, generator=torch.Generator().manual_seed(1)) * 0.01 + 1e-6
    scales = bytes_of((high, wide), 2) % 200 + 20 if of_scales == torch.uint8 else scales.to(of_scales)
    expected = Fp8Dequantize(None)._dequantize_one(codes.view(kind), scales, dtype)[first : first + count]
    form = packed(codes.view(kind), scales, block)
    start, rows, _ = form.grid(first, count)
    found = form.values(codes[first : first + count], scales[start : start + rows], first, dtype)
    assert torch.equal(bits(found), bits(expected)) and found.dtype == dtype
    assert torch.equal(form.codes_of(found, scales[start : start + rows], first), codes[first : first + count])


@pytest.mark.parametrize("dtype", TYPES)
def test_mxfp4(dtype: torch.dtype) -> None:
    codes, exponents = bytes_of((3, 64, 5, 16), 0), bytes_of((3, 64, 5), 1) % 253
    exponents = exponents % 10 + 122 if dtype == torch.float16 else exponents
    expected = convert_moe_packed_tensors(codes, exponents, dtype=dtype).transpose(1, 2).reshape(192, 160)
    form = packed(codes, exponents, (1, 32))
    for first, count in ((0, 192), (70, 100), (191, 1)):
        own = codes.view(192, -1)[first : first + count], exponents.view(192, 5)[first : first + count]
        found = form.values(*own, first, dtype)
        assert torch.equal(bits(found), bits(expected[first : first + count]))
        assert torch.equal(form.codes_of(found, own[1], first), own[0])


def test_tables_do_not_depend_on_torchs_usual_type() -> None:
    """Which is another while a thread builds a model in bfloat16."""
    usual = torch.get_default_dtype()
    tables: list[Callable[[], Tensor]] = [lambda: _pairs_of_values.__wrapped__(MXFP4), lambda: _pairs_of_values.__wrapped__(INT4)]
    tables += [_powers.__wrapped__, _code_of_steps.__wrapped__, lambda: _values.__wrapped__(torch.float8_e4m3fn)]
    expected = [table() for table in tables]
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = [table() for table in tables]
    finally:
        torch.set_default_dtype(usual)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(found, expected, strict=True))


def test_an_exponent_that_stands_for_no_number_gives_none() -> None:
    assert not factors(torch.tensor([255], dtype=torch.uint8)).isfinite().any()
    form = packed(torch.zeros(1, 1, 1, 16, dtype=torch.uint8), torch.tensor([[[255]]], dtype=torch.uint8), (1, 32))
    assert form.values(torch.zeros(1, 16, dtype=torch.uint8), torch.tensor([[255]], dtype=torch.uint8), 0, TYPES[0]).isnan().all()


def published(directory: Path, form: str, **changes: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint in outline whose Linears are codes, and its tensors; `changes` take the place of what it has."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors().items():
        if name.startswith("layers") and name.endswith((".up.weight", ".down.weight")):
            codes, scales = to_fp8(tensor, (32, 32)) if form == "fp8" else to_mxfp4(tensor[None])
            own, beside = (name, f"{name}_scale_inv") if form == "fp8" else (f"{name}_blocks", f"{name}_scales")
            made |= {own: codes, beside: scales}
        else:
            made[name] = tensor
    made |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    for name in [name for name, tensor in changes.items() if tensor is None]:
        del made[name]
    config = '{"model_type": "outline", "hidden_size": 128, "quantization_config": '
    write(directory, made)
    more = '{"quant_method": "fp8", "weight_block_size": [32, 32]}' if form == "fp8" else '{"quant_method": "mxfp4"}'
    (directory / "config.json").write_text(config + more + "}")
    return directory, made


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_store_gives_back_the_published_files(codec: str, tmp_path: Path) -> None:
    source, made = published(tmp_path / "model", "fp8", **{"layers.0.up.activation_scale": torch.tensor(1.0)})
    checkpoint = Checkpoint.open(source)
    assert set(made) - set(checkpoint.tensors) == {name for name in made if name.endswith(("_inv", "activation_scale"))}
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec=codec))
    used = sum((tmp_path / "store" / name).stat().st_size for name in ("shared.bin", "substitute.bin", "residual.bin"))
    assert estimate(checkpoint, layout(checkpoint), Recipe(codec=codec)) == pytest.approx(used, rel=0.1)
    store.verify()
    for name, entry in store.linears.items():
        rows = torch.cat(list(store.rows_of(entry)))
        if f"{name}.weight_scale_inv" in made:
            both = made[f"{name}.weight"], made[f"{name}.weight_scale_inv"]
            assert torch.equal(rows, Fp8Dequantize(None)._dequantize_one(*both, torch.bfloat16))
    export(store, tmp_path / "out")
    for file in source.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_rows_are_read_alone(tmp_path: Path) -> None:
    source, made = published(tmp_path / "model", "fp8")
    checkpoint, name = Checkpoint.open(source), "layers.0.up.weight"
    whole = Fp8Dequantize(None)._dequantize_one(made[name], made[f"{name}_scale_inv"], torch.bfloat16)
    assert torch.equal(checkpoint.read(name), whole) and torch.equal(checkpoint.read_rows(name, 70, 131), whole[70:131])


def test_blocks_that_are_cut_off_are_those_of_the_config(tmp_path: Path) -> None:
    """As in DeepSeek-V3, 576 rows in blocks of 128: transformers cannot cut its grid evenly."""
    weight = torch.randn(51, 128, generator=torch.Generator().manual_seed(3))
    codes, scales = to_fp8(weight, (32, 32))
    with pytest.raises(ValueError, match="not divisible"):
        Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    source, _ = published(tmp_path / "model", "fp8", **{"cut.weight": codes, "cut.weight_scale_inv": scales})
    expected = codes.float() * scales.repeat_interleave(32, 0)[:51].repeat_interleave(32, 1)
    assert torch.equal(Checkpoint.open(source).read("cut.weight"), expected.to(torch.bfloat16))


def test_a_block_of_zeros_may_have_a_scale_of_zero(tmp_path: Path) -> None:
    codes = torch.tensor([[0, 128] * 16] * 32, dtype=torch.uint8)
    both = {"zero.weight": codes.view(torch.float8_e4m3fn), "zero.weight_scale_inv": torch.zeros(1, 1)}
    source, _ = published(tmp_path / "model", "fp8", **both)
    assert not Checkpoint.open(source).read("zero.weight").any()
    both["zero.weight"] = (codes + 1).view(torch.float8_e4m3fn)
    source, _ = published(tmp_path / "other", "fp8", **both)
    with pytest.raises(CheckpointError, match=r"zero\.weight holds numbers .* or a scale of 0"):
        Checkpoint.open(source).read("zero.weight")


UP = "layers.1.up.weight"


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("fp8", {f"{UP}_scale_inv": None}, r"up\.weight has no scales: 'layers\.1\.up\.weight_scale_inv' is missing\. Get"),
        ("fp8", {f"{UP}_scale_inv": torch.ones(7, 4)}, r"is \[384, 128\] with scales \[7, 4\] of float32, which do not fit"),
        ("fp8", {f"{UP}_scale_inv": torch.ones(384)}, r"with scales \[384\] of float32, which do not fit"),
        ("fp8", {f"{UP}_scale_inv": torch.ones(12, 4, dtype=torch.int32)}, "of int32, which do not fit"),
        ("fp8", {f"{UP}_scale_inv": torch.ones(0, 4)}, "which do not fit"),
        ("mxfp4", {f"{UP}_scales": None}, r"up\.weight_blocks has no scales: 'layers\.1\.up\.weight_scales' is missing\. Get"),
        ("mxfp4", {f"{UP}_scales": torch.ones(1, 384, 3, dtype=torch.uint8)}, r"\[1, 384, 3\] of uint8, where \[1, 384, 4\]"),
        ("mxfp4", {f"{UP}_scales": torch.ones(1, 384, 4)}, "of float32, where"),
        ("mxfp4", {f"{UP}_blocks": torch.ones(1, 384, 8, 8, dtype=torch.uint8)}, "where blocks of 16 bytes are needed"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(form: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    source, _ = published(tmp_path / "model", form, **changes)
    info = Checkpoint.open(source).info(UP)
    with pytest.raises(CheckpointError, match=words) as refusal:
        check_weight(info, info.shape)
    assert "\n" not in str(refusal.value) and str(source) in str(refusal.value)


def test_a_block_that_transformers_would_cut_otherwise_is_refused(tmp_path: Path) -> None:
    codes, scales = to_fp8(torch.randn(48, 128), (32, 32))
    source, _ = published(tmp_path / "model", "fp8", **{"odd.weight": codes, "odd.weight_scale_inv": scales})
    info = Checkpoint.open(source).info("odd.weight")
    with pytest.raises(CheckpointError, match="in blocks of 32, and transformers would take blocks of 24"):
        check_weight(info, info.shape)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_codes_and_scales_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    scales = torch.full((12, 4), 0.01)
    scales[5, 2] = value
    source, _ = published(tmp_path / "model", "fp8", **{f"{UP}_scale_inv": scales})
    checkpoint = Checkpoint.open(source)
    with pytest.raises(CheckpointError, match=r"layers\.1\.up\.weight' holds (NaN|an infinity)"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())


def test_other_checkpoints_stay_as_they_are(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    assert unpacked(checkpoint.config, checkpoint.stored) is checkpoint.stored and checkpoint.tensors == checkpoint.stored
