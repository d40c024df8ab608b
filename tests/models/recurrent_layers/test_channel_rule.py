"""The rule with a decay for each channel: a tree's nodes are its steps along their paths, whatever runs beside them; on a
processor, and as a device with memory of its own computes it."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.devices.processor import Processor
from understudy.kernels.recurrence import RuleStep, recur_anywhere
from understudy.kernels.recurrence import working_bytes as plain_bytes
from understudy.models.recurrent_layers.channel_rule import recur, working_bytes
from understudy.recurrent import DEEPEST, RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

SHAPE = RecurrentShape(5, 4, 3, 3, 4, 6, by_channel=True)
RATED = RecurrentShape(5, 4, 1, 6, 4, 1, by_channel=True, rated=True)
RATES = -torch.rand(6, 4, generator=torch.Generator().manual_seed(9)) - 0.1


class Apart(Processor):
    """A device that is asked for nothing."""

    own_memory = True


DEVICES = [Processor(threads=1), Apart(threads=1)]


def drawn(count: int, seed: int, shape: RecurrentShape = SHAPE) -> RuleStep:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    key = torch.nn.functional.normalize(normal(count, shape.key_heads, 4), dim=-1)
    query, value = normal(count, shape.key_heads, 4), normal(count, shape.value_heads, shape.value_size)
    if shape.rated:
        return RuleStep(query, key, value, normal(count, 6).abs() * 0.3)
    decay, beta = (-normal(count, 3, 4).abs() * 0.1).exp(), normal(count, 3).sigmoid()
    return RuleStep(query, key, value, decay, beta)


def expected(step: RuleStep) -> Tensor:
    """[n, heads, value size]: the rule, step by step in float64."""
    heads, size = step.value.shape[1:]
    query, key, value, decay = (each.double() for each in (step.query, step.key, step.value, step.decay))
    decay = decay if decay.dim() == 3 else torch.exp(RATES * decay[..., None])
    query, key = (each.expand(-1, heads, -1) for each in (query, key))
    state = torch.zeros(heads, 4, size, dtype=torch.float64)
    found = []
    for i in range(len(key)):
        state = state * decay[i][..., None]
        u = value[i]
        if step.beta is not None:
            u = step.beta[i].double()[:, None] * (u - torch.einsum("hkv,hk->hv", state, key[i]))
        state = state + key[i][..., None] * u[:, None]
        found.append(torch.einsum("hkv,hk->hv", state, query[i]))
    return torch.stack(found)


@dataclass
class Run:
    """A row of a layer, whose text brings the steps of `text`."""

    text: RuleStep
    state: RecurrentState
    device: Processor

    @classmethod
    def of(cls, text: RuleStep, device: Processor) -> "Run":
        state = RecurrentState(SHAPE if text.decay.dim() == 3 else RATED, Room(1, 64, torch.float32), device.fold)
        state.rates = RATES
        return cls(text, state, device)

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
            found.append(recur(self.device, step, self.state, part, together))
        return torch.cat(found)

    def accept(self, length: int, path: list[int]) -> None:
        """The nodes of `path` of the tree above `length` become tokens."""
        self.state.keep(0, length, AcceptedPath(torch.tensor(path)))
        self.state.rewind(0, length + len(path))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [SHAPE, RATED])
def test_a_text_read_in_tiles_is_the_rule_step_by_step(shape: RecurrentShape, device: Processor) -> None:
    text = drawn(300, 1, shape)
    found = Run.of(text, device).read(TokenTree.chain([0] * 300), 0, 32)
    torch.testing.assert_close(found.double(), expected(text), atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [SHAPE, RATED])
def test_nodes_of_a_level_may_run_together(shape: RecurrentShape, device: Processor) -> None:
    text = drawn(141, 2, shape)
    run = Run.of(text, device)
    run.read(TokenTree.chain([0] * 140), 0, 32)
    run.accept(0, list(range(140)))
    wanted = expected(text)[140:].expand(11, -1, -1)
    level = Nodes.of(TokenTree.of([0] * 12, [-1, *[0] * 11]), 0, 139)[1:]
    beta = None if text.beta is None else text.beta[140:].expand(11, -1)
    many = RuleStep(*(each[140:].expand(11, *each.shape[1:]) for each in (text.query, text.key, text.value, text.decay)), beta)
    found = recur(device, many, run.state, level, together=True)
    torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=5e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(DEVICES), st.sampled_from([SHAPE, RATED]), st.integers(0, 150), st.integers(1, DEEPEST), st.integers(1, 33),
    st.integers(0, 1000),
)  # fmt: skip
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(
    device: Processor, shape: RecurrentShape, length: int, depth: int, tile: int, seed: int
) -> None:
    text = drawn(length + depth + 1, seed, shape)
    alone, run = Run.of(text, device), Run.of(text, device)
    bits = [alone.read(TokenTree.chain([0]), at, 1)[0] for at in range(length + depth + 1)]
    for at in range(0, length, 37):
        chunk = min(37, length - at)
        run.read(TokenTree.chain([0] * chunk), at, 32)
        run.accept(at, list(range(chunk)))
    # each node of the path has a sibling in front of it, which leaves a record at a slot of its own
    tree = TokenTree.of([0] * (2 * depth + 1), [-1, *(2 * (i // 2) for i in range(2 * depth))])
    for _ in range(2):
        # what a draft has left is read over
        found = run.read(tree, length, tile)
        assert all(torch.equal(found[2 * level], bits[length + level]) for level in range(depth + 1))
    # part of the path is accepted, and the rest comes again
    some = seed % depth + 1
    run.accept(length, [2 * level for level in range(some)])
    found = run.read(TokenTree.chain([0] * (depth + 1 - some)), length + some, tile)
    assert all(torch.equal(one, bits[length + some + i]) for i, one in enumerate(found))


def test_other_layers_run_by_the_device() -> None:
    shape = RecurrentShape(5, 4, 3, 3, 4, 6)
    step, nodes = drawn(9, 3), Nodes.of(TokenTree.chain([0] * 9), 0, 0)
    plain = RuleStep(step.query, step.key, step.value, step.decay[..., 0].contiguous(), step.beta)
    states = [RecurrentState(shape, Room(1, 64, torch.float32), lambda *_: None) for _ in range(2)]
    found = recur(DEVICES[0], plain, states[0], nodes, together=False)
    torch.testing.assert_close(found, recur_anywhere(plain, states[1], nodes, together=False))
    assert working_bytes(shape) == plain_bytes(shape) < working_bytes(SHAPE)
