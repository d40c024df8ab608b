"""A layer that forgets by channel, beside its products and its rule: what its steps give one by one, and the same inputs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from understudy.kernels import convolution_cpu, draft_channels
from understudy.kernels.draft_channels import ChannelForm, ask, gate
from understudy.kernels.join_form import Norm
from understudy.kernels.recurrence_cpu import fold
from understudy.models.recurrent_layers.gated_delta import unit
from understudy.recurrent import RecurrentShape, RecurrentState, Room
from understudy.tree import Nodes, TokenTree


def shape_of(heads: int, size: int) -> RecurrentShape:
    return RecurrentShape(3 * heads * size, 4, heads, heads, size, size, by_channel=True)


def form_of(shape: RecurrentShape) -> ChannelForm:
    norm = Norm(torch.rand(shape.value_size) + 0.5, 1e-3)
    return ChannelForm(torch.randn(shape.taps, shape.channels), shape.channels + 3, norm)


@settings(max_examples=20, deadline=None)
@given(
    tree=st.sampled_from([[-1], [-1, 0, 0, 1, 1, 2], [-1, 0, 1, 2, 3, 4, 5]]), length=st.sampled_from([0, 1, 70]),
    row=st.integers(0, 1), dtype=st.sampled_from([torch.float32, torch.bfloat16]), sizes=st.sampled_from([(2, 16), (3, 80)]),
    threads=st.integers(1, 2),
)  # fmt: skip
def test_what_nodes_bring_is_made_in_one_call(
    tree: list[int], length: int, row: int, dtype: torch.dtype, sizes: tuple[int, int], threads: int
) -> None:
    torch.manual_seed(length)
    shape = shape_of(*sizes)
    form, state = form_of(shape), RecurrentState(shape, Room(2, 40, dtype), fold)
    state.inputs.normal_()
    columns, other = shape.channels + 3 + sizes[0] + 2, copy.deepcopy(state)
    made = torch.randn(len(tree), columns).to(dtype)
    assert form.suits(state, columns) and not form.suits(state, columns - 3)
    assert not form.suits(RecurrentState(shape_of(sizes[0], 8), Room(1, 40, dtype), fold), columns)
    nodes = Nodes.of(TokenTree.of([0] * len(tree), tree), row, length)
    inputs = made[:, : shape.channels].contiguous()
    x = silu(convolution_cpu.convolve(inputs, form.weights.t().contiguous(), None, other, nodes).float())
    parts = [part.view(len(tree), *sizes) for part in x.chunk(3, 1)]
    shares = made[:, form.betas : form.betas + sizes[0]].float().sigmoid()
    wanted = (unit(parts[0]) * sizes[1] ** -0.5, unit(parts[1]), parts[2], shares)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_channels, "SMALL", 0)
        torch.set_num_threads(threads)
        try:
            found = ask(made, state, nodes, form)
        finally:
            torch.set_num_threads(1)
    near = 1e-5 if dtype == torch.float32 else 0.02
    assert torch.equal(state.inputs, other.inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).norm() <= near * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 80])
def test_what_the_rule_gives_is_normed_and_gated(size: int, dtype: torch.dtype) -> None:
    given, line = torch.randn(5, 3, size), torch.randn(5, 3 * size + 7).to(dtype)
    norm, gates = Norm(torch.rand(size) + 0.5, 1e-3), line[:, 4 : 4 + 3 * size]
    normed = given * (given.square().mean(-1, keepdim=True) + norm.epsilon).rsqrt() * norm.weight
    found = gate(given, gates, norm)
    near = 1e-6 if dtype == torch.float32 else 4e-3
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), normed.flatten(1) * gates.float().sigmoid(), atol=near, rtol=near)
