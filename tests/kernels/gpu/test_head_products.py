"""A matrix for each head on a GPU: what each gives is its own product, whatever other rows there are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import DEVICE

pytest.importorskip("triton")
from understudy.kernels.gpu.head_products import TritonHeads


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([8, 64, 100]), st.sampled_from([2, 40, 128]), st.integers(1, 70),
    st.sampled_from([torch.bfloat16, torch.float32]), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_each_head_has_a_matrix_of_its_own(
    heads: int, outputs: int, columns: int, rows: int, dtype: torch.dtype, turned: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weights = torch.randn(heads, outputs, columns).to(dtype)
    if turned:
        weights = weights.transpose(1, 2).contiguous().transpose(1, 2)
    # the first numbers of each head, as queries have more
    x = torch.randn(rows, heads, columns + 6).to(dtype).to(DEVICE)[..., :columns]
    product = TritonHeads(weights.to(DEVICE))
    assert (product.heads, product.outputs, product.columns) == (heads, outputs, columns)
    found, wanted = product(x), torch.einsum("nhk,hok->nho", x.double(), weights.to(DEVICE).double())
    assert found.dtype == dtype and (found.double() - wanted).norm() <= (2**-7 if dtype == torch.bfloat16 else 1e-5) * wanted.norm()
    assert torch.equal(product(x[rows - 1 :]), found[rows - 1 :]), "a row alone has other bits"
    assert torch.equal(product(x.flip(0)).flip(0), found), "a row has other bits in another place"
