"""What every quantiser of the table must do. A new one is tested by being in the table."""

import pytest
import torch

from understudy.errors import UsageError
from understudy.kernels import pack
from understudy.quantizers import QUANTIZERS, Quantizer, dequantised, fitting, quantised, quantizer

ERRORS = {
    "exact": 0.004,
    "int8": 0.02,
    "int6": 0.03,
    "int4": 0.1,
    "int3": 0.19,
    "int2": 0.37,
}  # relative, by how many bits a spec keeps
SHAPES = [(64, 64), (200, 192), (16, 32), (1, 96), (130, 320)]


def _weight(shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


SPECS = [*QUANTIZERS, "int4:group=32", "int4:group=128", "int3:group=16", "int3:group=128", "int2:group=32"]


@pytest.fixture(params=SPECS)
def maker(request: pytest.FixtureRequest) -> Quantizer:
    return quantizer(request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_close_and_of_the_size_it_says(maker: Quantizer, shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert maker.applies(*shape)
    weight = _weight(shape, dtype)
    made = maker.quantize(weight)
    assert sum(tensor.nbytes for tensor in made.values()) == maker.size(*shape, dtype)
    back = maker.dequantize(made, shape)
    assert back.dtype == torch.float32 and back.shape == shape
    assert _relative(back, weight) < ERRORS[maker.name.partition(":")[0]]
    assert quantizer(maker.name).name == maker.name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 33])
def test_linear_multiplies_by_what_it_dequantises_to(
    maker: Quantizer, shape: tuple[int, int], dtype: torch.dtype, rows: int
) -> None:
    made = maker.quantize(_weight(shape, dtype))
    x = torch.randn(rows, shape[1]).to(dtype)
    y = maker.linear(made, shape, dtype)(x)
    assert y.dtype == dtype and y.shape == (rows, shape[0])
    weight = maker.dequantize(made, shape)
    size = (x.float().abs() @ weight.abs().T).norm()  # what the sum is made of: it may itself be near zero
    assert (y.float() - x.float() @ weight.T).norm() < 0.01 * size


def test_pieces_make_the_whole(maker: Quantizer) -> None:
    weight = _weight((300, 128))
    whole = maker.quantize(weight)
    merged = maker.merge([maker.quantize(weight[:128]), maker.quantize(weight[128:192]), maker.quantize(weight[192:])])
    assert merged.keys() == whole.keys() and all(torch.equal(merged[name], whole[name]) for name in whole)
    part = maker.cut(whole, 2, 2)
    assert torch.equal(maker.dequantize(part, (128, 128)), maker.dequantize(whole, (300, 128))[128:256])


@pytest.mark.parametrize("rows", [40, 64, 128, 300, 384])
def test_a_weight_that_comes_in_pieces_is_the_whole(maker: Quantizer, rows: int) -> None:
    weight = _weight((rows, 128))
    whole, made = maker.quantize(weight), quantised(maker, iter(weight.split(128)), rows)
    assert made.keys() == whole.keys() and all(torch.equal(made[name], whole[name]) for name in whole)


def test_special_values_do_no_harm(maker: Quantizer) -> None:
    weight = _weight((64, 64))
    weight[0, 0], weight[1, 1], weight[2] = float("inf"), float("-inf"), 0.0
    back = maker.dequantize(maker.quantize(weight), (64, 64))
    rest = torch.isfinite(weight).float()
    error = _relative(torch.nan_to_num(back, 0, 0, 0) * rest, torch.nan_to_num(weight, 0, 0, 0))
    assert error < 2 * max(0.1, ERRORS[maker.name.partition(":")[0]])
    assert not back[2].any()


def test_odd_columns_are_kept_whole(maker: Quantizer) -> None:
    assert fitting(maker.name, 64, 33).name == "exact"
    assert fitting(maker.name, 64, 64).name == maker.name


@pytest.mark.parametrize("columns", [96, 128])
def test_aten_reads_the_same_codes(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pack.native_packing():
        pytest.skip("ATen packs 4-bit codes differently on this CPU")
    monkeypatch.setattr("understudy.quantizers.int4.best", lambda bits: None)
    maker = quantizer("int4")
    made = maker.quantize(_weight((1100, columns)))
    x = torch.randn(3, columns)
    y = maker.linear(made, (1100, columns), torch.float32)(x)
    assert _relative(y, x @ maker.dequantize(made, (1100, columns)).T) < 0.01


@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_any_device(spec: str) -> None:
    maker = quantizer(spec)
    made = maker.quantize(_weight((1100, 128)))
    x = torch.randn(3, 128)
    y = dequantised(maker, made, (1100, 128))(x)
    assert _relative(y, x @ maker.dequantize(made, (1100, 128)).T) < 1e-5


@pytest.mark.parametrize(
    "spec",
    ["int5", "int4:group=48", "int4:group=16", "int3:group=8", "int2:group=256", "int4:size=3", "int4:group=x"],
)
def test_wrong_specs(spec: str) -> None:
    with pytest.raises(UsageError):
        quantizer(spec)
