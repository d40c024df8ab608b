"""A layer of the gated delta rule between its products, in one call: what its steps give one by one, and the same records."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu, softplus

from understudy.kernels import convolution_cpu, recurrence_cpu
from understudy.kernels.delta_form import DeltaForm, DeltaLine
from understudy.kernels.draft_delta import mix_delta
from understudy.kernels.join_form import Norm
from understudy.kernels.recurrence import RuleStep
from understudy.recurrent import RecurrentShape, RecurrentState, Room
from understudy.tree import Nodes, TokenTree

SHAPE = RecurrentShape(channels=2 * 2 * 16 + 4 * 32, taps=4, key_heads=2, value_heads=4, key_size=16, value_size=32)
VALUES = SHAPE.value_heads * SHAPE.value_size
COLUMNS = SHAPE.channels + VALUES + 2 * SHAPE.value_heads + 5


def form_of(dtype: torch.dtype, mixed: bool) -> DeltaForm:
    """`mixed`: what the convolution takes lies anywhere in the line."""
    order = torch.randperm(SHAPE.channels) if mixed else torch.arange(SHAPE.channels)
    gates = SHAPE.channels + torch.arange(SHAPE.value_heads) * SHAPE.value_size
    betas = torch.arange(SHAPE.value_heads) + SHAPE.channels + VALUES
    line = DeltaLine(order, gates, betas, betas + SHAPE.value_heads + 2)
    weight = torch.randn(SHAPE.channels, SHAPE.taps).to(dtype)
    rates, shifts = torch.rand(SHAPE.value_heads) + 0.1, torch.randn(SHAPE.value_heads)
    return DeltaForm(line, weight, rates, shifts, Norm(torch.rand(SHAPE.value_size) + 0.5, 1e-3))


def state_of(dtype: torch.dtype) -> RecurrentState:
    state = RecurrentState(SHAPE, Room(2, 40, dtype), recurrence_cpu.fold)
    for tensor in (state.inputs, state.keys, state.values):
        tensor.normal_()
    state.decays.uniform_(0.8, 1.0)
    state.states.normal_()
    return state


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def by_steps(made: Tensor, state: RecurrentState, nodes: Nodes, form: DeltaForm) -> Tensor:
    inputs, line = made[:, form.line.channels].contiguous(), form.line
    x = silu(convolution_cpu.convolve(inputs, form.weight, None, state, nodes).float())
    query, key, value = x.split([32, 32, VALUES], 1)
    decay = torch.exp(-form.rates * softplus(made[:, line.decays].float() + form.shifts))
    heads = [unit(part.view(len(made), 2, 16)) for part in (query, key)]
    step = RuleStep(heads[0] / 4, heads[1], value.view(len(made), 4, 32), decay, made[:, line.betas].float().sigmoid())
    found = recurrence_cpu.recur(step, state, nodes)
    normed = found * (found.square().mean(-1, keepdim=True) + form.norm.epsilon).rsqrt() * form.norm.weight
    gates = made[:, SHAPE.channels : SHAPE.channels + VALUES].float().view(normed.shape)
    return (normed * silu(gates)).flatten(1).to(made.dtype)


@settings(max_examples=20, deadline=None)
@given(
    tree=st.sampled_from([[-1], [-1, 0, 0, 1, 1, 2], [-1, 0, 1, 2, 3, 4, 5]]), length=st.sampled_from([0, 1, 70, 130]),
    row=st.integers(0, 1), dtype=st.sampled_from([torch.float32, torch.bfloat16]), mixed=st.booleans(), threads=st.integers(1, 2),
)  # fmt: skip
def test_it_is_its_steps_one_by_one(
    tree: list[int], length: int, row: int, dtype: torch.dtype, mixed: bool, threads: int
) -> None:
    torch.manual_seed(length)
    state, form = state_of(dtype), form_of(dtype, mixed)
    nodes = Nodes.of(TokenTree.of([0] * len(tree), tree), row, length)
    other, made = copy.deepcopy(state), torch.randn(len(tree), COLUMNS).to(dtype)
    assert form.suits(state, COLUMNS)
    wanted = by_steps(made, other, nodes, form)
    torch.set_num_threads(threads)
    try:
        found = mix_delta(made, state, nodes, form)
    finally:
        torch.set_num_threads(1)
    near = 1e-4 if dtype == torch.float32 else 0.03
    assert found.dtype == dtype and (found.float() - wanted.float()).norm() <= near * wanted.float().norm()
    assert torch.equal(state.inputs, other.inputs)
    for ours, theirs in ((state.keys, other.keys), (state.values, other.values), (state.decays, other.decays)):
        assert torch.allclose(ours, theirs, atol=near)
