"""A level through the experts of a layer: the sum of what each row's experts give, whoever else is in the level."""

from functools import cache, partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, silu

from understudy.kernels.draft_experts import ExpertProduct
from understudy.kernels.draft_mixture import DraftMixture
from understudy.kernels.join_form import GateKind
from understudy.quantizers import quantizer

EXPERTS, INSIDE, HIDDEN = 6, 128, 192
OPENED = {GateKind.SILU: silu, GateKind.GELU: partial(gelu, approximate="tanh")}


@cache
def made(spec: str, gate: GateKind) -> tuple[DraftMixture, Tensor, Tensor]:
    """Experts, and both matrices of each as numbers."""
    torch.manual_seed(7)
    maker, shapes = quantizer(spec), ((EXPERTS * 2 * INSIDE, HIDDEN), (EXPERTS * HIDDEN, INSIDE))
    tensors = [maker.quantize(torch.randn(shape) * 0.2) for shape in shapes]
    products = [ExpertProduct(each["codes"], each["scales"], EXPERTS) for each in tensors]
    up, down = (maker.dequantize(each, shape).float() for each, shape in zip(tensors, shapes, strict=True))
    return DraftMixture(products[0], products[1], gate), up.view(EXPERTS, -1, HIDDEN), down.view(EXPERTS, -1, INSIDE)


def by_hand(hidden: Tensor, chosen: Tensor, weights: Tensor, spec: str, gate: GateKind) -> Tensor:
    _, up, down = made(spec, gate)
    out = torch.zeros(len(hidden), HIDDEN)
    for node, row in enumerate(hidden.float()):
        for expert, weight in zip(chosen[node].tolist(), weights[node].float(), strict=True):
            if expert < EXPERTS:
                first, second = (up[expert] @ row).chunk(2)
                out[node] += weight * (down[expert] @ (OPENED[gate](first) * second))
    return out


def level(nodes: int, each: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(EXPERTS + 1, generator=chance)[:each] for _ in range(nodes)])
    return torch.randn(nodes, HIDDEN, generator=chance).to(dtype), chosen, torch.rand(nodes, each, generator=chance)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 12), each=st.integers(1, 4), seed=st.integers(0, 99), spec=st.sampled_from(["int3", "int4", "int6"]),
    gate=st.sampled_from(list(GateKind)), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    threads=st.integers(1, 2),
)  # fmt: skip
def test_it_is_the_sum_of_what_the_experts_give(
    nodes: int, each: int, seed: int, spec: str, gate: GateKind, dtype: torch.dtype, threads: int
) -> None:
    """A number that no expert has is left out: some routers so say that a node goes to fewer."""
    given_rows = level(nodes, each, seed, dtype)
    torch.set_num_threads(threads)
    try:
        found = made(spec, gate)[0](*given_rows)
    finally:
        torch.set_num_threads(1)
    wanted = by_hand(*given_rows, spec, gate)
    assert found.dtype == dtype and found.shape == (nodes, HIDDEN)
    assert (found.float() - wanted).norm() <= 0.05 * wanted.norm()


def test_a_row_does_not_depend_on_the_others() -> None:
    mixture = made("int4", GateKind.SILU)[0]
    hidden, chosen, weights = level(9, 3, 1)
    together = mixture(hidden, chosen, weights)
    alone = [mixture(hidden[i : i + 1], chosen[i : i + 1], weights[i : i + 1]) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))


def test_rows_that_go_nowhere_give_zeros() -> None:
    mixture = made("int4", GateKind.SILU)[0]
    hidden, _, weights = level(3, 2, 2)
    assert not mixture(hidden, torch.full((3, 2), EXPERTS), weights).any()
