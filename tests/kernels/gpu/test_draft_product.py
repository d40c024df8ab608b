"""The GPU's products with weights of few bits against float64: every number of rows, group and dtype that drafts have, alone and
joined, with all that comes before and after."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from tests.device import DEVICE
from understudy.kernels.join_form import GateKind, JoinForm, Norm
from understudy.quantizers import quantizer

pytest.importorskip("triton")
from understudy.kernels.gpu import draft_product
from understudy.kernels.gpu.draft_product import GroupedProduct, JoinedGrouped

GATES: dict[GateKind, Callable[[Tensor], Tensor]] = {GateKind.SILU: silu, GateKind.GELU: partial(gelu, approximate="tanh")}
# relative errors; the interpreter cuts off what it rounds to bfloat16
NARROW, EXACT = 5e-3, 1e-6


def made(spec: str, rows: int, columns: int) -> tuple[GroupedProduct, Tensor]:
    """A product, and the weight it multiplies by in float64."""
    maker = quantizer(spec)
    tensors = maker.quantize(torch.randn(rows, columns) * 0.05 + 0.01)
    product = GroupedProduct(tensors["codes"].to(DEVICE), tensors["scales"].to(DEVICE), rows)
    return product, maker.dequantize(tensors, (rows, columns)).double()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "group", "rows"),
    [
        ((64, 32), 32, 1),
        ((130, 192), 64, 5),
        ((300, 512), 128, 16),
        ((64, 256), 256, 33),
        ((96, 96), 32, 64),
        ((70, 64), 64, 70),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_it_is_the_product(bits: int, shape: tuple[int, int], group: int, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    groups = f":group={group if bits == 4 else group // 2}" if bits < 8 else ""
    multiply, weight = made(f"int{bits}{groups}", *shape)
    x = torch.randn(rows, shape[1]).to(dtype)
    found = multiply(x.to(DEVICE))
    assert found.dtype == dtype and found.shape == (rows, shape[0])
    assert error(found, x.double() @ weight.T) < (NARROW if dtype == torch.bfloat16 else EXACT)


@pytest.mark.parametrize("spec", ["int3", "int4", "int8"])
def test_the_columns_are_shared_out_and_none_is_counted_twice(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven steps in two shares of two rounds for two warps: the last round is not full. What counts the shares is ready for the
    next call."""
    monkeypatch.setattr(draft_product, "PARTS", 2)
    monkeypatch.setattr(draft_product, "shared_out", lambda *_: draft_product.ColumnShares(2, 2))
    torch.manual_seed(0)
    multiply, weight = made(spec, 64, 448)
    launch = multiply._alone.launches[0]
    x = torch.randn(2, 448)
    found = [multiply(x.to(DEVICE)) for _ in range(2)]
    assert torch.allclose(found[0].cpu().double(), x.double() @ weight.T, atol=1e-4)
    assert torch.equal(found[0], found[1]) and not launch.counters.any()


def norm_of(columns: int) -> Norm:
    return Norm((torch.rand(columns) + 0.5).to(DEVICE), 1e-3)


def normed(x: Tensor, norm: Norm) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.cpu().double()


def joined(specs: Sequence[str], outputs: Sequence[int], columns: int) -> tuple[list[GroupedProduct], list[Tensor]]:
    pairs = [made(spec, rows, columns) for spec, rows in zip(specs, outputs, strict=True)]
    return [product for product, _ in pairs], [weight for _, weight in pairs]


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(("specs", "launches"), [(["int4"] * 3, 1), (["int4", "int4", "int3"], 2), (["int8", "int4", "int2"], 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_one_input_lie_side_by_side(
    dtype: torch.dtype, specs: list[str], launches: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a norm, with biases, and with something added; shared out or not."""
    monkeypatch.setattr(draft_product, "PARTS", parts)
    monkeypatch.setattr(draft_product, "running", lambda device, each: 396)
    torch.manual_seed(1)
    products, weights = joined(specs, (128, 64, 70), 256)
    norm, bias = norm_of(256), torch.randn(64)
    together = JoinedGrouped(products, JoinForm(norm, [None, bias.to(DEVICE), None]))
    assert len(together.launches) == launches and (together.launches[0].shares.count > 1) == (parts == 1)
    x, added = torch.randn(5, 256).to(dtype), torch.randn(5, 262).to(dtype)
    exact = torch.cat([normed(x, norm) @ weight.T for weight in weights], 1) + added.double()
    exact[:, 128:192] += bias.double()
    assert error(together(x.to(DEVICE), added.to(DEVICE)), exact) < (2 * NARROW if dtype == torch.bfloat16 else EXACT)


@pytest.mark.parametrize("specs", [["int4", "int4"], ["int4", "int3"]])
@pytest.mark.parametrize(("rows", "parts"), [(3, 4), (40, 1)])
@pytest.mark.parametrize("gate", list(GateKind))
def test_one_half_is_gated_by_the_other(
    gate: GateKind, specs: list[str], rows: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_product, "PARTS", parts)
    monkeypatch.setattr(draft_product, "running", lambda device, each: 396)
    torch.manual_seed(2)
    products, weights = joined(specs, (100, 100), 256)
    norm, biases = norm_of(256), [torch.randn(100), torch.randn(100)]
    together = JoinedGrouped(products, JoinForm(norm, [bias.to(DEVICE) for bias in biases], gate))
    x = torch.randn(rows, 256)
    first, second = (normed(x, norm) @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    assert error(together(x.to(DEVICE)), GATES[gate](first) * second) < EXACT


@pytest.mark.parametrize("spec", ["int4", "int6"])
def test_one_weight_may_hold_both_halves(spec: str) -> None:
    torch.manual_seed(3)
    product, weight = made(spec, 256, 192)
    x = torch.randn(5, 192)
    together = JoinedGrouped(product.halves, JoinForm(gate=GateKind.GELU))
    first, second = (x.double() @ weight.T).chunk(2, 1)
    assert together.outputs == 128 and error(together(x.to(DEVICE)), GATES[GateKind.GELU](first) * second) < EXACT
    assert made(spec, 192, 64)[0].halves == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_norm_and_a_factor_come_before_what_is_added(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    product, weight = made("int4", 100, 64)
    x, added = torch.randn(3, 64).to(dtype), torch.randn(3, 100).to(dtype)
    exact, near = 0.5 * (x.double() @ weight.T), 2 * NARROW if dtype == torch.bfloat16 else EXACT
    norm = norm_of(100)
    scaled, both = (JoinedGrouped([product], JoinForm(times=0.5, after=after)) for after in (None, norm))
    assert error(scaled(x.to(DEVICE)), exact) < near
    assert error(scaled(x.to(DEVICE), added.to(DEVICE)), exact + added.double()) < near
    assert error(both(x.to(DEVICE), added.to(DEVICE)), normed(exact, norm) + added.double()) < near
    last = JoinedGrouped([product], JoinForm(scale=0.75))
    assert error(last(x.to(DEVICE), added.to(DEVICE)), (2 * exact + added.double()) * 0.75) < near


def test_shares_fill_the_gpu() -> None:
    """Few blocks are shared out more than many; there are no empty shares."""
    few, many = (draft_product.shared_out(blocks, 80, 396, 4, 16) for blocks in (20, 2000))
    assert few.count > 4 and many.count == 1 and many.rounds == 20
    assert all(
        (shares.count - 1) * shares.rounds * 4 < steps
        for steps in range(1, 100)
        for shares in [draft_product.shared_out(30, steps, 396, 4, 16)]
    )
