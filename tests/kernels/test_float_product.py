"""Float32 rows times exact weights: the nearest sums in order, the same bits in any company, whatever the weights are kept as."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_scaled_fours import made, reference
from understudy.codecs import Encoded, codec
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import BlockProduct, applies
from understudy.kernels.float_dot import MOST
from understudy.kernels.instructions import has
from understudy.kernels.pack import block
from understudy.quantizers import fitting

KINDS = torch.float16, torch.bfloat16, torch.float32


def drawn(outputs: int, columns: int, rows: int, kind: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Weights of this kind, of which a few are so small that float16 has them with fewer places, and float32 rows."""
    torch.manual_seed(seed)
    weight = torch.randn(outputs, columns) * torch.exp2(torch.randint(-20, 1, (outputs, 1)).float())
    return weight.to(kind), torch.randn(rows, columns)


def multiplied(tiles: list[Tensor], operands: list[tuple[Operand, int]], rows: int, blocks: int) -> Tensor:
    out = torch.empty(rows, blocks, 64)
    BlockProduct(operands, rows=torch.float32)(tiles, out)
    return out


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS), columns=st.sampled_from([2, 64, 130, 386, 514]), rows=st.integers(1, 4 * MOST),
    seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_a_row_has_the_same_bits_in_any_company(
    kind: torch.dtype, columns: int, rows: int, seed: int, data: st.DataObject
) -> None:
    weight, x = drawn(128, columns, rows, kind, seed)
    whole = block(weight)
    together = multiplied([x], [(Operand.plain(whole), 0)], rows, 2)
    want, scale = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((together.view(rows, -1).double() - want).abs() <= scale * columns * 2**-24).all()
    start = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(start + 1, rows))
    parts = [(Operand.plain(whole[1:].contiguous()), 1), (Operand.plain(whole[:1]), 0)]
    some = multiplied([x[start:end]], parts, end - start, 2)
    assert torch.equal(some.view(torch.int32), together[start:end].view(torch.int32))
    cut = data.draw(st.integers(0, rows - 1))
    tiles = multiplied([x[:cut], x[cut:]] if cut else [x], [(Operand.plain(whole), 0)], rows, 2)
    assert torch.equal(tiles.view(torch.int32), together.view(torch.int32))


@pytest.mark.skipif(not has("fma"), reason="needs products that are added rounded once")
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_added_in_order(kind: torch.dtype) -> None:
    weight, x = drawn(64, 96, 3, kind, 5)
    found = multiplied([x], [(Operand.plain(block(weight)), 0)], 3, 1).view(3, -1)
    sums, w = np.zeros((3, 64), np.float32), weight.float().numpy()
    for k in range(96):
        # float64 holds the product as it is, and rounds the sum so finely that rounding it again almost never matters
        sums = (sums.astype(np.float64) + x[:, k, None].double().numpy() * w[:, k].astype(np.float64)).astype(np.float32)
    assert (found.numpy() == sums).mean() > 0.99


def delta(weight: Tensor) -> list[tuple[Operand, int]]:
    maker, stored = fitting("int4", *weight.shape), codec("delta")
    substitute, whole = maker.quantize(weight), block(weight)
    found = []
    for first in range(len(whole)):
        piece = maker.cut(substitute, first, 1)
        data = stored.encode(whole[first : first + 1], piece)
        assert data.numel() < whole[first].nbytes
        found.append((stored.operand(Encoded(data, 1, weight.shape[1], weight.dtype, piece)), first))
    return found


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_what_is_rebuilt_multiplies_as_it_would_as_it_is(rows: int, kind: torch.dtype) -> None:
    weight, x = drawn(192, 256, rows, kind, 3)
    plain = multiplied([x], [(Operand.plain(block(weight)), 0)], rows, 3)
    packed = delta(weight)
    assert all((operand._described.trailing != 0) == (kind == torch.float16) for operand, _ in packed)
    assert torch.equal(multiplied([x], packed, rows, 3), plain)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["int2", "int3", "int4", "int6", "int8"]), st.integers(1, 20), st.booleans())
def test_float16_beside_any_copy(seed: int, spec: str, rows: int, odd: bool) -> None:
    """Also weights that are subnormal, and exceptions."""
    weight, x = drawn(64, 256, rows, torch.float16, seed)
    weight = torch.where(torch.rand(weight.shape) < 0.02, weight * 50, weight) if odd else weight
    assert (weight.abs() < 2**-14).any()
    substitute, stored = fitting(spec, *weight.shape).quantize(weight), codec("delta")
    data = stored.encode(block(weight), substitute)
    operand = stored.operand(Encoded(data, 1, 256, torch.float16, substitute))
    found, plain = (multiplied([x], [(one, 0)], rows, 1) for one in (operand, Operand.plain(block(weight))))
    assert torch.equal(found.view(torch.int32), plain.view(torch.int32)) and found.abs().sum() > 0


def test_float16_that_was_bfloat16_has_no_more_bits() -> None:
    weight, x = drawn(64, 256, 3, torch.bfloat16, 4)
    weight = weight.half()
    packed = delta(weight)
    assert packed[0][0]._described.trailing == 0 and packed[0][0].dtype == torch.float16 and not packed[0][0].halves
    assert torch.equal(multiplied([x], packed, 3, 1), multiplied([x], [(Operand.plain(block(weight)), 0)], 3, 1))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(1, 32, 32), (2, 96, 32), (3, 128, 8), (1, 512, 256), (2, 48, 24)]),
    st.sampled_from(["float16", "float32"]), st.booleans(), st.sampled_from([1, 3, 20]), st.booleans(),
)  # fmt: skip
def test_codes_of_float16_weights(
    seed: int, sizes: tuple[int, int, int], kind: str, zeros: bool, rows: int, odd: bool
) -> None:
    """A code times its scale is rounded to float16, of which some have fewer places, and multiplied as such."""
    own = made(*sizes, kind=kind, zeros=zeros, seed=seed, halved=True)
    if odd:
        # scales that float16 has not, so that small products are rounded to fewer places
        own = replace(own, scales=own.scales.float() * (1 + 2**-9))
    weights = reference(own, torch.float16)
    assert (weights.abs() < 2**-14).any() and weights.isfinite().all()
    x = torch.randn(rows, sizes[1], generator=torch.Generator().manual_seed(seed))
    found, plain = (
        multiplied([x], [(operand, 0)], rows, sizes[0]) for operand in (Operand.scaled(own, torch.float16), Operand.plain(weights))
    )
    assert torch.equal(found.view(torch.int32), plain.view(torch.int32)) and found.abs().sum() > 0


def test_special_values_go_through() -> None:
    weight, x = drawn(64, 64, 3, torch.float16, 1)
    x[1, 5], x[2, 7] = float("inf"), float("nan")
    out = multiplied([x], [(Operand.plain(block(weight)), 0)], 3, 1)
    assert out[0].isfinite().all() and not out[1].isfinite().any() and out[2].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_with_matrices_of_their_own(kind: torch.dtype) -> None:
    weights, x = drawn(3 * 64, 96, 4, kind, 2)[0].view(3, 64, 96), torch.randn(4, 3 * 96)
    product = BlockProduct([(Operand.plain(block(own)), head) for head, own in enumerate(weights)], apart=True, rows=torch.float32)
    out = torch.empty(4, 3, 64)
    product([x], out)
    for head, own in enumerate(weights):
        alone = multiplied([x[:, 96 * head : 96 * head + 96].contiguous()], [(Operand.plain(block(own)), 0)], 4, 1)
        assert torch.equal(out[:, head], alone[:, 0])


def test_what_it_applies_to() -> None:
    assert all(applies(kind, 64, torch.float32) for kind in KINDS) and not applies(torch.float16, 65, torch.float32)
    assert not applies(torch.float64, 64, torch.float32) and not applies(torch.float16, 64, torch.float16)
    assert not applies(torch.float16, 64, torch.bfloat16) and not applies(torch.float32, 64, torch.bfloat16)


def test_types_that_do_not_fit_are_refused() -> None:
    weight, x = drawn(64, 64, 1, torch.float16, 1)
    operands = [(Operand.plain(block(weight)), 0)]
    with pytest.raises(AssertionError):
        BlockProduct(operands)
    with pytest.raises(AssertionError, match="AMX"):
        BlockProduct(operands, True, rows=torch.float32)
    with pytest.raises(AssertionError):
        BlockProduct(operands, rows=torch.float32)([x], torch.empty(1, 1, 64, dtype=torch.bfloat16))
