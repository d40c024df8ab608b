"""Rows find their experts and their way back on a GPU, here in Triton's interpreter: the order of torch's stable sort, and sums of
the bits of torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE

pytest.importorskip("triton")
from understudy.kernels.gpu import expert_rows
from understudy.kernels.gpu.expert_rows import TritonExperts

EXPERTS = 6
KERNELS = TritonExperts()


def choices(rows: int, each: int, seed: int) -> Tensor:
    """Of each row, experts of which none stands twice; the number past the last says that it goes to fewer."""
    chance = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(EXPERTS + each - 1, generator=chance)[:each] for _ in range(rows)]).clamp(max=EXPERTS)


def added(out: Tensor, experts: Tensor, chosen: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """What `add` is compared with: sums of torch's, node by node and expert by expert."""
    total = torch.zeros(len(chosen), out.shape[1])
    for node, own in enumerate(rows.tolist()):
        for row, weight in sorted(zip(own, weights[node].float(), strict=True)):
            if experts[row] < EXPERTS:
                total[node] += out[row].float() * weight
    return total


def rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """`total` in `dtype`, as the kernel makes it: the interpreter cuts bfloat16 off where a GPU rounds it to the nearest."""
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        total = (total.view(torch.int32) & -65536).view(torch.float32)
    return total.to(dtype)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.sampled_from([torch.int64, torch.int32]), st.integers(0, 99))
def test_rows_are_sorted_by_expert_as_torch_sorts_them(rows: int, each: int, kind: torch.dtype, seed: int) -> None:
    chosen = choices(rows, each, seed) if rows else torch.empty(0, each, dtype=torch.int64)
    found = KERNELS.places(chosen.to(DEVICE, kind), EXPERTS)
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)
    assert torch.equal(found.nodes.cpu(), order // each)
    assert torch.equal(found.experts.cpu().long(), flat[order])
    assert torch.equal(found.starts.cpu().long(), torch.searchsorted(flat[order], torch.arange(EXPERTS + 1)))
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
    assert torch.equal(found.rows.cpu().long(), back.view(chosen.shape))


def test_choices_that_a_program_looks_at_one_stretch_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choices(70, 3, 1).to(DEVICE)
    whole = KERNELS.places(chosen, EXPERTS)
    monkeypatch.setattr(expert_rows, "MOST_CHOICES", 64)
    cut = KERNELS.places(chosen, EXPERTS)
    for name in ("nodes", "experts", "starts", "rows"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)), name


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 4), st.sampled_from([16, 70, 1100]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99),
)  # fmt: skip
def test_what_experts_give_is_added_in_their_order_and_rounded_once(
    rows: int, each: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    """What goes to no expert adds nothing, whatever stands there, nor is there anything in rows behind the nodes."""
    torch.manual_seed(seed)
    chosen = choices(rows, each, seed)
    places = KERNELS.places(chosen.to(DEVICE), EXPERTS)
    out, weights = torch.randn(rows * each, columns).to(dtype), torch.rand(rows, each).to(dtype)
    wanted = rounded(added(out, places.experts.cpu(), chosen, places.rows.cpu(), weights), dtype)
    out[places.experts.cpu() == EXPERTS] = torch.nan
    found = KERNELS.add(out.to(DEVICE), places, weights.to(DEVICE), rows + 3, dtype).cpu()
    assert torch.equal(found[:rows], wanted) and not found[rows:].any() and found.dtype == dtype
    order = torch.randperm(each)
    shuffled = KERNELS.places(chosen[:, order].to(DEVICE), EXPERTS)
    assert torch.equal(KERNELS.add(out.to(DEVICE), shuffled, weights[:, order].to(DEVICE), rows, dtype).cpu(), wanted)
