"""A layer's part between its products on a GPU: what the processor's gives, and the same keys and values in the cache."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.device import DEVICE
from understudy.kernels import draft_layer as processor
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.head_form import HeadForm
from understudy.kernels.join_form import Norm
from understudy.layer_states import FullState, LayerShape, SlidingState
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
from understudy.kernels.gpu import draft_layer

HEADS, KV_HEADS = 6, 2
UNIT = Norm(torch.ones(1), 0.0)


def state_of(dtype: torch.dtype, size: int, window: int) -> FullState:
    state = (SlidingState if window else FullState)(LayerShape(KV_HEADS, size, size, window), 3, 1024, dtype)
    state.keys.normal_()
    state.values.normal_()
    return state


def on_device(state: FullState) -> FullState:
    moved = copy.copy(state)
    moved.keys, moved.values = state.keys.to(DEVICE, copy=True), state.values.to(DEVICE, copy=True)
    return moved


def level(length: int) -> Nodes:
    """The last level of a tree, whose nodes are not each other's ancestors."""
    return Nodes.of(TokenTree.of(range(10), [-1, 0, 0, 1, 1, 2, 2, 2, 3, 3]), 1, length)[5:]


def chains(length: int) -> Nodes:
    """Chains behind the texts of two rows."""
    return Nodes.join([Nodes.of(TokenTree.chain(range(count)), row, length + row) for row, count in ((0, 7), (2, 4))])


def given(count: int, size: int, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    angles = torch.randn(count, size // 2).repeat(1, 2)
    return torch.randn(count, (HEADS + 2 * KV_HEADS) * size).to(dtype), (angles.cos().to(dtype), angles.sin().to(dtype))


@pytest.mark.parametrize("room", [264, 1])
@pytest.mark.parametrize("made_of", [level, chains])
@pytest.mark.parametrize(
    ("dtype", "size", "length", "window", "softcap"),
    [
        (torch.float32, 48, 0, 0, 0.0),
        (torch.float32, 16, 40, 0, 2.0),
        (torch.bfloat16, 32, 90, 0, 0.0),
        (torch.bfloat16, 64, 900, 70, 2.0),
    ],
)
def test_it_gives_what_the_processor_gives(
    dtype: torch.dtype, size: int, length: int, window: int, softcap: float, made_of: Callable[[int], Nodes], room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where several programs share the positions of a node; what counts them is ready for the next layer."""
    monkeypatch.setattr(draft_layer, "WORTH", 32)
    monkeypatch.setattr(draft_layer, "MOST_SHARES", 4)
    monkeypatch.setattr(draft_layer, "running", lambda device, each: room)
    torch.manual_seed(length)
    state, nodes, form = state_of(dtype, size, window), made_of(length), HeadForm(AttentionSpec(0.2, window, softcap))
    compare(state, nodes, *given(len(nodes), size, dtype), form)


def compare(state: FullState, nodes: Nodes, made: Tensor, turns: tuple[Tensor, Tensor], form: HeadForm) -> None:
    """What the GPU gives and keeps with what the processor does, twice."""
    other = on_device(state)
    wanted = processor.attend(made, turns, state, nodes, form)
    attend = draft_layer.LayerAttention(DEVICE)
    there = (made.to(DEVICE), (turns[0].to(DEVICE), turns[1].to(DEVICE)), other, nodes.to(DEVICE), moved(form))
    found = [attend(*there) for _ in range(2)]
    near = 1e-5 if made.dtype == torch.float32 else 0.015
    for ours, theirs in ((found[0], wanted), (other.keys, state.keys), (other.values, state.values)):
        assert (ours.cpu().float() - theirs.float()).norm() < near * theirs.float().norm()
    assert torch.equal(found[0], found[1]) and not attend.counters.any()


def moved(form: HeadForm) -> HeadForm:
    """`form` with its tensors on the device."""
    sinks = None if form.spec.sinks is None else form.spec.sinks.to(DEVICE)
    query, key = (Norm(norm.weight.to(DEVICE), norm.epsilon) for norm in form.norms or (UNIT, UNIT))
    return replace(form, spec=replace(form.spec, sinks=sinks), norms=(query, key) if form.norms else None)


def test_shares_are_told_by_shapes_alone() -> None:
    assert draft_layer.shared_out(1, 64, 264) == 1
    assert draft_layer.shared_out(1, 1 << 20, 264) == draft_layer.MOST_SHARES
    assert draft_layer.shared_out(100, 1 << 20, 264) == 2
    assert draft_layer.shared_out(1000, 1 << 20, 264) == 1
