"""What a draft's nodes do over latent states: states are normed, turned and kept, and each head attends to them, in however many
shares heads are."""

import pytest
import torch

from understudy.kernels.attention import AttentionSpec
from understudy.kernels.draft_states import attend_states, shares_of
from understudy.kernels.head_form import HeadForm
from understudy.kernels.head_products import HeadProduct
from understudy.kernels.join_form import Norm
from understudy.kernels.state_form import StateForm, StateRows
from understudy.layer_states import FullState, LayerShape
from understudy.tree import Nodes, TokenTree

RANK, TURNED, PLAIN = 32, 8, 24


@pytest.mark.parametrize(("heads", "shares"), [(1, 1), (7, 1), (8, 1), (15, 1), (16, 2), (20, 2), (21, 1), (128, 16)])
def test_heads_are_shared_out_evenly(heads: int, shares: int) -> None:
    assert shares_of(heads) == shares and heads % shares == 0


@pytest.mark.parametrize("heads", [3, 16])
@torch.inference_mode()
def test_it_is_attention_over_states_that_are_normed_and_kept(heads: int) -> None:
    torch.manual_seed(heads)
    state = FullState(LayerShape(1, RANK + TURNED, RANK, latent=True), 2, 64, torch.float32)
    state.keys.normal_()
    before, length = state.keys.clone(), 20
    nodes = Nodes.of(TokenTree.of(range(6), [-1, 0, 0, 1, 1, 2]), 1, length)[3:]
    line, query = torch.randn(3, RANK + TURNED), torch.randn(3, heads, PLAIN + TURNED)
    angles = torch.randn(3, TURNED // 2).repeat(1, 2)
    weights, norm = torch.randn(heads, RANK, PLAIN) / 5, Norm(torch.rand(RANK) + 0.5, 1e-6)
    form = StateForm(HeadForm(AttentionSpec(0.2), last=True), norm, HeadProduct(weights))
    assert form.rank == RANK
    rows = StateRows(query, line[:, :RANK], line[:, RANK:])
    found = attend_states(rows, (angles.cos(), angles.sin()), state, nodes, form).view(3, heads, RANK)

    def turned(x: torch.Tensor, node: int) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * angles[node].cos() + torch.cat((-second, first), -1) * angles[node].sin()

    kept = torch.rms_norm(line[:, :RANK], (RANK,), norm.weight, norm.epsilon)
    for node in range(3):
        slot = length + 3 + node
        own = torch.cat((kept[node], turned(line[node, RANK:], node)))
        assert torch.allclose(state.keys[1, 0, slot], own, atol=1e-5)
        seen = torch.cat((before[1, 0, nodes.slots_in_order(node)[:-1]], own[None]))
        asked = torch.cat((torch.einsum("hc,hrc->hr", query[node, :, :PLAIN], weights), turned(query[node, :, PLAIN:], node)), -1)
        wanted = (0.2 * asked @ seen.T).softmax(-1) @ seen[:, :RANK]
        assert torch.allclose(found[node], wanted, atol=1e-4)
    assert torch.equal(state.keys[0], before[0]), "another row was written"
