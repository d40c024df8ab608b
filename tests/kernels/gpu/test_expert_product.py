"""The draft's products with codes of experts on a GPU: each row times the matrix of its own expert, against float64."""

import pytest
import torch
from torch import Tensor

from tests.device import DEVICE
from tests.inline_asm import follow
from understudy.kernels.pack import block
from understudy.quantizers import quantizer

pytest.importorskip("triton")
from understudy.kernels.gpu import expert_product
from understudy.kernels.gpu.draft_product import ColumnShares
from understudy.kernels.gpu.expert_product import GroupedExperts, WholeExperts

# relative errors; the interpreter cuts off what it rounds to bfloat16
ERRORS = {torch.bfloat16: 5e-3, torch.float32: 1e-6}
# an odd number of blocks of each expert
EXPERTS, ROWS, COLUMNS = 4, 192, 192
# how many rows each expert has: none at all, a few, and more than a program takes; behind them some that go to none
SHARES = ([0, 1, 0, 0], [2, 0, 3, 1], [20, 0, 1, 37], [9, 8, 7, 16])
OTHERS = 3


def made(spec: str) -> tuple[GroupedExperts, Tensor]:
    """Products, and the matrices they multiply by in float64."""
    torch.manual_seed(0)
    maker, shape = quantizer(spec), (EXPERTS * ROWS, COLUMNS)
    tensors = maker.quantize(torch.randn(shape) * 0.05 + 0.01)
    product = GroupedExperts(tensors["codes"].to(DEVICE), tensors["scales"].to(DEVICE), EXPERTS)
    return product, maker.dequantize(tensors, shape).double().view(EXPERTS, ROWS, COLUMNS)


def routed(counts: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their experts, and the first row of each expert."""
    experts = torch.repeat_interleave(torch.arange(EXPERTS + 1), torch.tensor([*counts, OTHERS]))
    starts = torch.searchsorted(experts, torch.arange(EXPERTS + 1))
    x = torch.randn(len(experts), COLUMNS, generator=torch.Generator().manual_seed(len(experts))).to(dtype)
    return x.to(DEVICE), experts.to(DEVICE, torch.int32), starts.to(DEVICE, torch.int32)


def compare(product: GroupedExperts | WholeExperts, weight: Tensor, counts: list[int], dtype: torch.dtype) -> None:
    x, experts, starts = routed(counts, dtype)
    found = product(x, experts, starts)
    assert found.dtype == dtype and found.shape == (len(x), ROWS)
    known = sum(counts)
    wanted = torch.einsum("mk,mrk->mr", x[:known].cpu().double(), weight[experts[:known].cpu().long()])
    assert (found[:known].cpu().double() - wanted).norm() < ERRORS[dtype] * wanted.norm()
    again = product(x, experts, starts)
    assert torch.equal(again[:known], found[:known])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int4:group=32", "int6", "int8"])
def test_each_row_is_multiplied_by_the_codes_of_its_expert(spec: str, dtype: torch.dtype) -> None:
    product, weight = made(spec)
    for counts in SHARES:
        compare(product, weight, counts, dtype)


@pytest.mark.parametrize("spec", ["int3", "int4", "int8"])
def test_columns_are_shared_out_and_counters_are_ready_again(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_product, "PARTS", 2)
    monkeypatch.setattr(expert_product, "shared_out", lambda _, steps, *__: ColumnShares(2, -(-steps // 4)))
    product, weight = made(spec)
    for counts in SHARES:
        compare(product, weight, counts, torch.float32)
    assert product._counters and not any(counter.any() for counter in product._counters.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the instructions itself")
@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("many", [0, 4, 100])
def test_the_way_for_4_bits_with_its_instructions_followed(shares: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of 8 rows and of 16, two blocks each."""
    monkeypatch.setattr(expert_product, "INTERPRETED", False)
    monkeypatch.setattr(expert_product, "MANY", many)
    follow(monkeypatch.setattr)
    monkeypatch.setattr(expert_product, "shared_out", lambda _, steps, *__: ColumnShares(shares, -(-steps // shares)))
    product, weight = made("int4")
    for counts in SHARES:
        compare(product, weight, counts, torch.bfloat16)
    assert not any(counter.any() for counter in product._counters.values())


def test_there_may_be_no_rows() -> None:
    product, _ = made("int4")
    x, experts, starts = routed([0, 0, 0, 0], torch.float32)
    assert product(x[:0], experts[:0], starts).shape == (0, ROWS)
    assert WholeExperts(torch.zeros(EXPERTS * 3, COLUMNS, 64), EXPERTS)(x[:0], experts[:0], starts).shape == (0, ROWS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_that_are_kept_as_they_are(dtype: torch.dtype) -> None:
    weight = (torch.randn(EXPERTS * ROWS, COLUMNS) * 0.1).to(dtype)
    product = WholeExperts(block(weight).to(DEVICE), EXPERTS)
    for counts in SHARES:
        compare(product, weight.double().view(EXPERTS, ROWS, COLUMNS), counts, dtype)
