"""The rule with a decay for each channel: a tree's nodes are its steps along their paths, whatever runs beside them."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.devices.processor import Processor
from understudy.kernels.recurrence import RuleStep, recur_anywhere
from understudy.kernels.recurrence import working_bytes as plain_bytes
from understudy.models.channel_rule import recur, working_bytes
from understudy.recurrent import DEEPEST, RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

SHAPE = RecurrentShape(5, 4, 3, 3, 4, 6, by_channel=True)
DEVICE = Processor(threads=1)


def drawn(count: int, seed: int) -> RuleStep:
    random = torch.Generator().manual_seed(seed)
    key = torch.nn.functional.normalize(torch.randn(count, 3, 4, generator=random), dim=-1)
    decay = (-torch.randn(count, 3, 4, generator=random).abs() * 0.1).exp()
    beta = torch.randn(count, 3, generator=random).sigmoid()
    return RuleStep(torch.randn(count, 3, 4, generator=random), key, torch.randn(count, 3, 6, generator=random), decay, beta)


def expected(step: RuleStep) -> Tensor:
    """[n, heads, value size]: the rule, step by step in float64."""
    assert step.beta is not None
    query, key, value, decay, beta = (each.double() for each in (step.query, step.key, step.value, step.decay, step.beta))
    state = torch.zeros(3, 4, 6, dtype=torch.float64)
    found = []
    for i in range(len(key)):
        state = state * decay[i][..., None]
        u = beta[i][:, None] * (value[i] - torch.einsum("hkv,hk->hv", state, key[i]))
        state = state + key[i][..., None] * u[:, None]
        found.append(torch.einsum("hkv,hk->hv", state, query[i]))
    return torch.stack(found)


@dataclass
class Run:
    """A row of a layer, whose text brings the steps of `text`."""

    text: RuleStep
    state: RecurrentState

    @classmethod
    def of(cls, text: RuleStep) -> "Run":
        return cls(text, RecurrentState(SHAPE, Room(1, 64, torch.float32), lambda *_: None))

    def read(self, tree: TokenTree, length: int, tile: int, together: bool = False) -> Tensor:
        """The rule for the nodes of a tree above `length`, in tiles; a node brings what the text has at its depth."""
        nodes, found = Nodes.of(tree, 0, length), []
        for start in range(0, len(nodes), tile):
            part = nodes[start : start + tile]
            for row, position in tops(part):
                self.state.advance(row, position)
            at = part.positions
            beta = None if self.text.beta is None else self.text.beta[at]
            step = RuleStep(self.text.query[at], self.text.key[at], self.text.value[at], self.text.decay[at], beta)
            found.append(recur(DEVICE, step, self.state, part, together))
        return torch.cat(found)


def test_a_text_read_in_tiles_is_the_rule_step_by_step() -> None:
    text = drawn(300, 1)
    found = Run.of(text).read(TokenTree.chain([0] * 300), 0, 32)
    torch.testing.assert_close(found.double(), expected(text), atol=3e-6, rtol=3e-6)


def test_nodes_of_a_level_may_run_together() -> None:
    text, run = drawn(141, 2), Run.of(drawn(141, 2))
    run.read(TokenTree.chain([0] * 140), 0, 32)
    run.state.keep(0, 0, AcceptedPath(torch.arange(140)))
    tree = Nodes.of(TokenTree.of([0] * 12, [-1, *[0] * 11]), 0, 139)[1:]
    many = RuleStep(*(each[140:].expand(11, *each.shape[1:]) for each in (text.query, text.key, text.value, text.decay, text.beta)))
    found = recur(DEVICE, many, run.state, tree, together=True)
    torch.testing.assert_close(found.double(), expected(text)[140:].expand(11, 3, 6), atol=3e-6, rtol=3e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 150), st.integers(1, DEEPEST), st.integers(1, 33), st.integers(0, 1000))
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(length: int, depth: int, tile: int, seed: int) -> None:
    text = drawn(length + depth + 1, seed)
    alone, run = Run.of(text), Run.of(text)
    bits = [alone.read(TokenTree.chain([0]), at, 1)[0] for at in range(length + depth + 1)]
    for at in range(0, length, 37):
        chunk = min(37, length - at)
        run.read(TokenTree.chain([0] * chunk), at, 32)
        run.state.keep(0, at, AcceptedPath(torch.arange(chunk)))
    # each node of the path has a sibling in front of it, which leaves a record at a slot of its own
    tree = TokenTree.of([0] * (2 * depth + 1), [-1, *(2 * (i // 2) for i in range(2 * depth))])
    found = run.read(tree, length, tile)
    assert all(torch.equal(found[2 * level], bits[length + level]) for level in range(depth + 1))


def test_other_layers_run_by_the_device() -> None:
    shape = RecurrentShape(5, 4, 3, 3, 4, 6)
    step, nodes = drawn(9, 3), Nodes.of(TokenTree.chain([0] * 9), 0, 0)
    plain = RuleStep(step.query, step.key, step.value, step.decay[..., 0], step.beta)
    states = [RecurrentState(shape, Room(1, 64, torch.float32), lambda *_: None) for _ in range(2)]
    found = recur(DEVICE, plain, states[0], nodes, together=False)
    torch.testing.assert_close(found, recur_anywhere(plain, states[1], nodes, together=False))
    assert working_bytes(shape) == plain_bytes(shape) < working_bytes(SHAPE)
