"""The exact product: the same bits from weights as they are and from codes and residual, for any rows that run together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.codecs import Encoded, codec
from understudy.kernels import exact_product
from understudy.kernels.amx_dot import has_amx
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import FEW, BlockProduct
from understudy.kernels.pack import block
from understudy.quantizers import fitting


def drawn(outputs, columns, rows, seed):
    torch.manual_seed(seed)
    weight = (torch.randn(outputs, columns) * torch.randn(outputs, 1).exp() * 0.05).bfloat16()
    return weight, torch.randn(rows, columns).bfloat16()


# how weights are multiplied: by vectors, and by AMX where the machine has it
WAYS = [False, True] if has_amx() else [False]


def multiply(tiles, operands, out, way):
    BlockProduct(operands, way)(tiles, out)


def packed(weight, spec):
    """Each block's operand, from the codec's bytes."""
    maker = fitting(spec, *weight.shape)
    substitute, made = maker.quantize(weight), codec("delta")
    whole = block(weight)
    operands = []
    for first in range(len(whole)):
        piece = maker.cut(substitute, first, 1)
        data = made.encode(whole[first : first + 1], piece)
        assert data.numel() < whole[first].nbytes, "the residual is no smaller than the weights: nothing was packed"
        operands.append((made.operand(Encoded(data, 1, weight.shape[1], torch.bfloat16, piece)), first))
    return operands


@settings(max_examples=25, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    outputs=st.sampled_from([64, 100, 256]),
    columns=st.sampled_from([64, 128, 192, 320]),
    rows=st.integers(1, 37),
    spec=st.sampled_from(["int4", "int3", "int2", "int8"]),
    seed=st.integers(0, 1000),
)
def test_rebuilt_on_the_way_and_as_they_are_give_the_same_bits(way, outputs, columns, rows, spec, seed):
    weight, x = drawn(outputs, columns, rows, seed)
    whole = block(weight)
    plain, rebuilt = (torch.empty(rows, len(whole), 64, dtype=torch.bfloat16) for _ in range(2))
    multiply([x], [(Operand.plain(whole), 0)], plain, way)
    multiply([x], packed(weight, spec), rebuilt, way)
    assert torch.equal(plain.view(torch.int16), rebuilt.view(torch.int16))
    want = x.double() @ weight.double().T
    error = (plain.view(rows, -1)[:, :outputs].double() - want).abs()
    scale = x.double().abs() @ weight.double().abs().T
    assert (error <= scale * 2**-20 + want.abs() * 2**-8).all(), "not the nearest bfloat16 of a float32 sum"


@settings(max_examples=25, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    columns=st.sampled_from([2, 6, 130, 256, 514]),
    rows=st.integers(1, 40),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_a_row_has_the_same_bits_in_any_company(way, columns, rows, seed, data):
    weight, x = drawn(128, columns, rows, seed)
    whole = block(weight)
    together = torch.empty(rows, 2, 64, dtype=torch.bfloat16)
    multiply([x], [(Operand.plain(whole), 0)], together, way)
    start = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(start + 1, rows))
    some = torch.empty(end - start, 2, 64, dtype=torch.bfloat16)
    multiply([x[start:end]], [(Operand.plain(whole[1:].contiguous()), 1), (Operand.plain(whole[:1]), 0)], some, way)
    assert torch.equal(some.view(torch.int16), together[start:end].view(torch.int16))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter_and_special_values_go_through(threads, way):
    weight, x = drawn(64 * 20, 512, 9, 1)
    x[3, 5], x[4, 7] = float("inf"), float("nan")
    out, again = (torch.empty(9, 20, 64, dtype=torch.bfloat16) for _ in range(2))
    multiply([x], [(Operand.plain(block(weight)), 0)], out, way)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        multiply([x], [(Operand.plain(block(weight)), 0)], again, way)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out.view(torch.int16), again.view(torch.int16))
    assert out[4].isnan().all() and not out[3].isfinite().any() and out[[0, 1, 2, 5, 6, 7, 8]].isfinite().all()


def test_what_it_does_not_apply_to():
    assert exact_product.applies(torch.bfloat16, 64)
    assert not exact_product.applies(torch.bfloat16, 65) and not exact_product.applies(torch.float32, 64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("columns", [128, 130, 576])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 17])
def test_rows_are_multiplied_where_they_lie_or_put_together_first(rows, columns, way):
    """One product serves any rows: of a tile with padding, of several tiles, and of one whose lines do not follow each other."""
    weight, x = drawn(128, columns, 32, 3)
    product = BlockProduct([(Operand.plain(block(weight)), 0)], way)
    want = torch.empty(32, 2, 64, dtype=torch.bfloat16)
    product([x], want)
    wide = torch.zeros(32, columns + 2, dtype=torch.bfloat16)
    wide[:, :columns] = x
    for tiles in ([x], [x[:3], x[3:]], [wide[:, :columns]]):
        out = torch.empty(rows, 2, 64, dtype=torch.bfloat16)
        product(tiles, out)
        assert torch.equal(out.view(torch.int16), want[:rows].view(torch.int16))
