"""A layer's part over latent states on a GPU: what the processor's gives, and the same states in the cache."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.device import DEVICE
from tests.kernels.gpu.test_draft_layer import chains, level
from understudy.kernels import draft_states as processor
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.head_form import HeadForm, Turning
from understudy.kernels.head_products import HeadProduct
from understudy.kernels.join_form import Norm
from understudy.kernels.state_form import StateForm, StateRows
from understudy.layer_states import FullState, LayerShape, values_in
from understudy.tree import Nodes

pytest.importorskip("triton")
from understudy.kernels.gpu import draft_states
from understudy.kernels.gpu.head_products import TritonHeads


def on_device(state: FullState) -> FullState:
    moved = copy.copy(state)
    moved.keys = state.keys.to(DEVICE, copy=True)
    moved.values = values_in([moved.keys], state.shape)
    return moved


def given(
    count: int, heads: int, rank: int, turned: int, dtype: torch.dtype, angles: int
) -> tuple[StateRows, tuple[Tensor, Tensor], Tensor]:
    """Rows that lie side by side as one product makes them, turns, and what makes queries of them."""
    plain = 24
    line = torch.randn(count, 5 + rank + turned).to(dtype)
    query = torch.randn(count, heads, plain + turned).to(dtype)
    turns = torch.randn(count, angles)
    weights = (torch.randn(heads, rank, plain) / 5).to(dtype)
    return StateRows(query, line[:, 5 : 5 + rank], line[:, 5 + rank :]), (turns.cos().to(dtype), turns.sin().to(dtype)), weights


@pytest.mark.parametrize("room", [264, 1])
@pytest.mark.parametrize("made_of", [level, chains])
@pytest.mark.parametrize(
    ("dtype", "heads", "rank", "turned", "turn", "length", "spec"),
    [
        (torch.float32, 3, 40, 8, Turning.HALVES, 0, AttentionSpec(0.2)),
        (torch.float32, 20, 32, 16, Turning.PAIRS, 90, AttentionSpec(0.2, softcap=2.0)),
        (torch.bfloat16, 17, 64, 24, Turning.SORTED, 300, AttentionSpec(0.1)),
        (torch.float32, 1, 20, 6, Turning.SHARED, 33, AttentionSpec(0.3)),
        (torch.bfloat16, 2, 48, 0, Turning.NONE, 70, AttentionSpec(0.1)),
    ],
)
def test_it_gives_what_the_processor_gives(
    dtype: torch.dtype, heads: int, rank: int, turned: int, turn: Turning, length: int, spec: AttentionSpec,
    made_of: Callable[[int], Nodes], room: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where several programs share the positions of a node, twice: what counts them is ready for the next layer."""
    monkeypatch.setattr(draft_states, "WORTH", 32)
    monkeypatch.setattr(draft_states, "running", lambda device, each: room)
    torch.manual_seed(length)
    shape = LayerShape(1, rank + turned, rank, latent=True)
    state, nodes = FullState(shape, 3, 512, dtype), made_of(length)
    state.keys.normal_()
    angles = turned // (2 if turn is Turning.SHARED else 1) or 4
    rows, turns, weights = given(len(nodes), heads, rank, turned, dtype, angles)
    heads_form, norm = HeadForm(spec, turn, last=True), Norm(torch.rand(rank) + 0.5, 1e-5)
    other = on_device(state)
    wanted = processor.attend_states(rows, turns, state, nodes, StateForm(heads_form, norm, HeadProduct(weights)))
    on = StateForm(heads_form, Norm(norm.weight.to(DEVICE), norm.epsilon), TritonHeads(weights.to(DEVICE)))
    attention = draft_states.StateAttention(DEVICE)
    moved = StateRows(*(each.to(DEVICE) for each in (rows.query, rows.state, rows.turned)))
    for _ in range(2):
        found = attention(moved, (turns[0].to(DEVICE), turns[1].to(DEVICE)), other, nodes.to(DEVICE), on)
        assert torch.allclose(found.float().cpu(), wanted.float(), atol=2e-2 if dtype == torch.bfloat16 else 1e-4, rtol=2e-2)
        kept = other.keys.float().cpu()
        assert torch.allclose(kept, state.keys.float(), atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
        assert not attention.counters.any()
