"""Heads of a GPU's draft layer are normed, turned and kept in every way as the processor's are."""

import pytest
import torch

from tests.kernels.gpu.test_draft_layer import HEADS, KV_HEADS, chains, compare, given, level, state_of
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.head_form import HeadForm, Made, Turning
from understudy.kernels.join_form import Norm
from understudy.tree import Nodes

pytest.importorskip("triton")
from understudy.kernels.gpu import draft_layer


@pytest.mark.parametrize(("room", "dtype"), [(264, torch.float32), (1, torch.float32), (1, torch.bfloat16)])
@pytest.mark.parametrize("turn", list(Turning))
@pytest.mark.parametrize(
    ("angles", "normed", "sinks", "last"),
    [(32, True, False, False), (16, False, True, False), (16, True, True, False), (16, True, False, True)],
)
def test_heads_may_be_normed_turned_in_part_and_have_sinks(
    turn: Turning, angles: int, normed: bool, sinks: bool, last: bool, room: int, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(draft_layer, "WORTH", 32)
    monkeypatch.setattr(draft_layer, "running", lambda device, each: room)
    torch.manual_seed(angles)
    norms = (Norm(torch.rand(32) + 0.5, 1e-3), Norm(torch.rand(32) + 0.5, 1e-3)) if normed else None
    form = HeadForm(AttentionSpec(0.2, sinks=torch.randn(HEADS) if sinks else None), turn, norms, last=last)
    own = angles // 2 if turn is Turning.SHARED else angles
    nodes = level(90)
    made, turns = given(len(nodes), 32, dtype)
    compare(state_of(dtype, 32, 0), nodes, made, (turns[0][:, :own], turns[1][:, :own]), form)


@pytest.mark.parametrize(("room", "dtype"), [(264, torch.float32), (1, torch.bfloat16)])
@pytest.mark.parametrize("nodes", [level(90), chains(90)], ids=["level", "chains"])
@pytest.mark.parametrize("made", list(Made))
@pytest.mark.parametrize("epsilon", [None, 1e-2])
def test_values_may_be_normed_or_be_keys_and_both_may_be_those_of_another_layer(
    made: Made, epsilon: float | None, nodes: Nodes, room: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_layer, "WORTH", 32)
    monkeypatch.setattr(draft_layer, "running", lambda device, each: room)
    torch.manual_seed(7)
    norms = (Norm(torch.rand(32) + 0.5, 1e-3), Norm(torch.rand(32) + 0.5, 1e-3))
    form = HeadForm(AttentionSpec(0.2), Turning.HALVES, norms, epsilon, made=made)
    line, turns = given(len(nodes), 32, dtype)
    own = line[:, : HEADS * 32 + KV_HEADS * form.beside(32, 32)].contiguous()
    compare(state_of(dtype, 32, 0), nodes, own, turns, form)
