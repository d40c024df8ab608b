"""Recurrent layers over records: a tree's nodes are the steps of the rule along their paths, whatever runs beside them."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.kernels.recurrence import RuleStep, convolve_anywhere, fold_anywhere, recur_anywhere
from understudy.recurrent import DEEPEST, RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

SHAPE = RecurrentShape(channels=5, taps=4, key_heads=2, value_heads=4, key_size=3, value_size=6)


@dataclass
class Text:
    """Inputs of a recurrent layer for each position of a text, drawn at random."""

    x: Tensor
    step: RuleStep

    @classmethod
    def drawn(cls, count: int, seed: int, delta: bool) -> "Text":
        random = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random)

        key = torch.nn.functional.normalize(normal(count, 2, 3), dim=-1)
        beta = normal(count, 4).sigmoid() if delta else None
        decay = (-normal(count, 4).abs() * 0.1).exp()
        return cls(normal(count, 5), RuleStep(normal(count, 2, 3), key, normal(count, 4, 6), decay, beta))

    def expected(self) -> Tensor:
        """[n, value heads, value size]: the rule, step by step in float64."""
        s = self.step
        state = torch.zeros(4, 3, 6, dtype=torch.float64)
        found = []
        for i in range(len(s.key)):
            key, query = (t[i].double().repeat_interleave(2, 0) for t in (s.key, s.query))
            state = state * s.decay[i].double()[:, None, None]
            u = s.value[i].double()
            if s.beta is not None:
                u = s.beta[i].double()[:, None] * (u - torch.einsum("hkv,hk->hv", state, key))
            state = state + key[..., None] * u[:, None]
            found.append(torch.einsum("hkv,hk->hv", state, query))
        return torch.stack(found)

    def convolved(self, weight: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(self.x.T[None], (3, 0))
        return torch.nn.functional.conv1d(padded, weight[:, None], groups=5)[0].T


WEIGHT = torch.linspace(-1, 1, 20).view(5, 4)


def run(state: RecurrentState, text: Text, tree: TokenTree, length: int, tile: int, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Both operations for the nodes of a tree above `length`, in tiles; node i brings what `text` has at its depth."""
    convolved = []
    found = []
    nodes = Nodes.of(tree, 0, length)
    for start in range(0, len(nodes), tile):
        part, at = nodes[start : start + tile], length + depths[start : start + tile]
        for row, position in tops(part):
            state.advance(row, position)
        convolved.append(convolve_anywhere(text.x[at], WEIGHT, None, state, part))
        step = text.step
        beta = None if step.beta is None else step.beta[at]
        mine = RuleStep(step.query[at], step.key[at], step.value[at], step.decay[at], beta)
        found.append(recur_anywhere(mine, state, part, together=False))
    return torch.cat(convolved), torch.cat(found)


def opened() -> RecurrentState:
    return RecurrentState(SHAPE, Room(1, 64, torch.float32), fold_anywhere)


@pytest.mark.parametrize("delta", [True, False])
def test_a_text_read_in_tiles_is_the_rule_step_by_step(delta: bool) -> None:
    text = Text.drawn(300, 1, delta)
    convolved, found = run(opened(), text, TokenTree.chain([0] * 300), 0, 32, torch.arange(300))
    torch.testing.assert_close(found.double(), text.expected(), atol=3e-6, rtol=3e-6)
    torch.testing.assert_close(convolved, text.convolved(WEIGHT))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 150), st.integers(1, DEEPEST), st.integers(1, 33), st.integers(0, 1000))
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(length: int, depth: int, tile: int, seed: int) -> None:
    text = Text.drawn(length + depth + 1, seed, True)
    alone = opened()
    one = torch.zeros(1, dtype=torch.int64)
    bits = [run(alone, text, TokenTree.chain([0]), at, 1, one) for at in range(length + depth + 1)]
    state = opened()
    for at in range(0, length, 37):
        chunk = min(37, length - at)
        run(state, text, TokenTree.chain([0] * chunk), at, 32, torch.arange(chunk))
        state.keep(0, at, AcceptedPath(torch.arange(chunk)))
    # each node of the path has a sibling in front of it, which leaves a record at a slot of its own
    tree = TokenTree.of([0] * (2 * depth + 1), [-1, *(2 * (i // 2) for i in range(2 * depth))])
    depths = torch.tensor([0, *(1 + i // 2 for i in range(2 * depth))])
    convolved, found = run(state, text, tree, length, tile, depths)
    for level in range(depth + 1):
        assert torch.equal(convolved[2 * level], bits[length + level][0][0])
        assert torch.equal(found[2 * level], bits[length + level][1][0])
