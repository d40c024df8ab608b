"""Rows times exact weights on a GPU, here in Triton's interpreter: near float64, and each row the same bits among any others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import DEVICE

pytest.importorskip("triton")
from understudy.kernels.gpu.exact_product import multiply_routed, multiply_rows, multiply_whole

# relative errors of one rounding of the result
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([1, 5, 16, 63, 64, 65, 130]),
    st.sampled_from([16, 64, 90, 192]),
    st.sampled_from(list(ERRORS)),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(0, 1 << 20),
)
def test_each_row_is_multiplied_for_itself(
    count: int, columns: int, dtype: torch.dtype, stored: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count, columns).to(dtype).to(DEVICE)
    blocks = torch.randn(2, columns, 64).to(stored).to(DEVICE)
    # blocks 1 and 2 of a product of four
    whole = torch.full((count, 4, 64), torch.nan, dtype=dtype, device=DEVICE)
    multiply_rows(x, blocks, whole[:, 1:3])
    found = whole[:, 1:3]
    wanted = torch.einsum("nk,bkj->nbj", x.double(), blocks.to(dtype).double())
    assert (found.double() - wanted).norm() <= ERRORS[dtype] * wanted.norm()
    assert whole[:, [0, 3]].isnan().all()
    order = torch.randperm(count, device=DEVICE)
    shuffled = torch.empty_like(found)
    multiply_rows(x[order], blocks, shuffled)
    assert torch.equal(shuffled, found[order])
    alone = torch.empty(1, 2, 64, dtype=dtype, device=DEVICE)
    multiply_rows(x[-1:], blocks, alone)
    assert torch.equal(alone[0], found[-1])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=3, max_size=5),
    st.sampled_from([64, 90, 192]),
    st.sampled_from(list(ERRORS)),
    st.integers(0, 1 << 20),
)
def test_each_row_is_multiplied_by_the_matrix_of_its_expert_with_the_bits_it_has_alone(
    counts: list[int], columns: int, dtype: torch.dtype, seed: int
) -> None:
    """Matrices of two blocks each, of which five blocks come first and then the others; the last rows go to no expert."""
    torch.manual_seed(seed)
    experts = torch.repeat_interleave(torch.arange(len(counts) + 1), torch.tensor([*counts, 2]))
    starts = torch.searchsorted(experts, torch.arange(len(counts) + 1)).to(DEVICE, torch.int32)
    x = torch.randn(len(experts), columns).to(dtype).to(DEVICE)
    blocks = torch.randn(2 * len(counts), columns, 64).bfloat16().to(DEVICE)
    out = torch.full((len(x), 2, 64), 9.0, dtype=dtype, device=DEVICE)
    multiply_routed(x, starts, blocks[:5], 0, out)
    multiply_routed(x, starts, blocks[5:], 5, out)
    assert (out[sum(counts) :] == 9).all()
    for expert, own in enumerate(torch.split(torch.arange(sum(counts)), counts)):
        matrix = blocks[2 * expert : 2 * expert + 2]
        wanted = torch.empty(len(own), 2, 64, dtype=dtype, device=DEVICE)
        multiply_rows(x[own], matrix, wanted)
        assert torch.equal(out[own], wanted)
        if len(own):
            alone = torch.empty(1, 2, 64, dtype=dtype, device=DEVICE)
            multiply_rows(x[own[-1:]], matrix, alone)
            assert torch.equal(alone[0], out[own[-1]])


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([1, 16, 65, 130]), st.sampled_from([16, 90, 192]), st.sampled_from([1, 8, 64, 70]),
    st.sampled_from(list(ERRORS)), st.integers(0, 1 << 20),
)  # fmt: skip
def test_a_weight_that_lies_whole_multiplies_each_row_for_itself(
    count: int, columns: int, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = (torch.randn(rows, columns).to(dtype).to(DEVICE) for rows in (count, outputs))
    found = multiply_whole(x, weight)
    wanted = x.double() @ weight.double().T
    # a single number may be off by what the interpreter cuts off in bfloat16
    error = 2**-7 if dtype == torch.bfloat16 else ERRORS[dtype]
    assert found.dtype == dtype and (found.double() - wanted).norm() <= error * wanted.norm()
    order = torch.randperm(count, device=DEVICE)
    assert torch.equal(multiply_whole(x[order], weight), found[order])
    assert torch.equal(multiply_whole(x[-1:], weight)[0], found[-1])
