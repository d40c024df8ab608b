"""Rows times the matrices of their experts, where those lie in one tall matrix: the bits of a product by each cut out alone."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels import team
from understudy.kernels.draft_experts import ExpertProduct
from understudy.kernels.draft_product import Product
from understudy.quantizers import quantizer

SPECS = ("int2", "int2:group=16", "int3", "int3:group=32", "int4", "int4:group=128", "int4:group=32", "int6", "int8")


def cut_out(codes: Tensor, scales: Tensor, expert: int, blocks: int) -> Product:
    """The product by the matrix of one expert, copied out of the tall one."""
    rows = slice(expert * blocks * 64, (expert + 1) * blocks * 64)
    own = codes[expert * blocks : (expert + 1) * blocks].contiguous(), scales[:, rows].contiguous()
    return Product(*own, blocks * 64)


def pieces(x: Tensor, counts: list[int]) -> Iterator[tuple[int, Tensor]]:
    """The rows of each expert that has some."""
    yield from ((expert, rows) for expert, rows in enumerate(torch.split(x[: sum(counts)], counts)) if len(rows))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_bits_are_those_of_each_matrix_alone(spec: str, dtype: torch.dtype) -> None:
    maker, experts, blocks, columns = quantizer(spec), 5, 2, 256
    shape = (experts * blocks * 64, columns)
    made = maker.quantize(torch.randn(shape))
    product = ExpertProduct(made["codes"], made["scales"], experts)
    counts = [3, 0, 1, 9, 0]
    x = torch.randn(15, columns, dtype=dtype)
    found = product(x, counts)
    assert found.dtype == dtype and found.shape == (15, blocks * 64) and not found[13:].any()
    whole = maker.dequantize(made, shape).view(experts, -1, columns)
    start = 0
    for expert, rows in pieces(x, counts):
        y = found[start : start + len(rows)]
        assert torch.equal(y, cut_out(made["codes"], made["scales"], expert, blocks)(rows))
        wanted = rows.float() @ whole[expert].T
        assert (y.float() - wanted).norm() / wanted.norm() < 0.02
        start += len(rows)


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    blocks=st.integers(1, 3),
    columns=st.sampled_from([32, 64, 192, 320]),
    after=st.integers(0, 2),
)
@settings(max_examples=40)
def test_any_rows_of_any_experts(counts: list[int], blocks: int, columns: int, after: int) -> None:
    torch.manual_seed(sum(counts) + columns)
    maker = quantizer("int4")
    made = maker.quantize(torch.randn(len(counts) * blocks * 64, columns))
    x = torch.randn(sum(counts) + after, columns)
    found = ExpertProduct(made["codes"], made["scales"], len(counts))(x, counts)
    assert not found[sum(counts) :].any()
    start = 0
    for expert, rows in pieces(x, counts):
        assert torch.equal(found[start : start + len(rows)], cut_out(made["codes"], made["scales"], expert, blocks)(rows))
        start += len(rows)


def test_all_threads_give_what_one_gives_also_where_rows_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = quantizer("int4")
    made = maker.quantize(torch.randn(2 * 1536, 512))
    product = ExpertProduct(made["codes"], made["scales"], 2)
    x = torch.randn(512, 5).T
    one = product(x, [2, 3])
    with team.shared_by(2, 1):
        assert torch.equal(product(x, [2, 3]), one)
    monkeypatch.setattr(team, "parallel", lambda: 0)
    with team.shared_by(2, 1):
        assert torch.equal(product(x, [2, 3]), one)


def test_blocks_that_cannot_be_shared_out_are_refused() -> None:
    made = quantizer("int4").quantize(torch.randn(192, 64))
    with pytest.raises(AssertionError, match="3 blocks of 2 experts"):
        ExpertProduct(made["codes"], made["scales"], 2)
