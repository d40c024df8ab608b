"""A matrix for each head: what each gives is its own product, whatever other rows there are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels.amx_dot import has_amx
from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import FEW, RUN, BlockProduct
from understudy.kernels.head_products import HeadProduct
from understudy.kernels.pack import block

WAYS = [False, True] if has_amx() else [False]
SIZES = st.tuples(st.integers(1, 7), st.sampled_from([8, 64, 100, 192]), st.sampled_from([2, 40, 96, 128, 192, 320]))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 40), st.sampled_from([torch.bfloat16, torch.float32, torch.float16]), st.integers(0, 1000))
def test_each_head_has_a_matrix_of_its_own(sizes: tuple[int, int, int], rows: int, dtype: torch.dtype, seed: int) -> None:
    heads, outputs, columns = sizes
    torch.manual_seed(seed)
    weights, x = torch.randn(heads, outputs, columns).to(dtype), torch.randn(rows, heads, columns).to(dtype)
    product = HeadProduct(weights)
    assert (product.heads, product.outputs, product.columns) == sizes
    found = product(x)
    wanted = torch.einsum("nhk,hok->nho", x.double(), weights.double())
    assert found.shape == wanted.shape and found.dtype == dtype
    assert torch.allclose(found.double(), wanted, atol=1e-4 if dtype == torch.float32 else 0.02 * columns**0.5, rtol=1e-2)
    for row in range(0, rows, 7):
        assert torch.equal(product(x[row : row + 1]), found[row : row + 1]), "a row alone has other bits"
    assert torch.equal(product(x.flip(0)).flip(0), found), "a row has other bits in another place"


@pytest.mark.parametrize("amx", WAYS)
@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1, 33])
@pytest.mark.parametrize("columns", [64, RUN, RUN + 64, 2 * RUN + 64, RUN + 16])
def test_operands_with_numbers_of_their_own_give_what_each_gives_alone(rows: int, columns: int, amx: bool) -> None:
    torch.manual_seed(rows)
    blocks = [block(torch.randn(100, columns).bfloat16()) for _ in range(3)]
    x, out = torch.randn(rows, 3 * columns).bfloat16(), torch.empty(rows, 6, 64, dtype=torch.bfloat16)
    product = BlockProduct([(Operand.plain(own), 2 * place) for place, own in enumerate(blocks)], amx, apart=True)
    # few rows after many ones: where a row's numbers lie is told anew
    product([torch.randn(40, 3 * columns).bfloat16()], torch.empty(40, 6, 64, dtype=torch.bfloat16))
    product([x], out)
    for place, own in enumerate(blocks):
        alone = torch.empty(rows, 2, 64, dtype=torch.bfloat16)
        BlockProduct([(Operand.plain(own), 0)], amx)([x[:, place * columns : (place + 1) * columns].contiguous()], alone)
        assert torch.equal(out[:, 2 * place : 2 * place + 2], alone)
