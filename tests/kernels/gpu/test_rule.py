"""The rule of recurrent layers on a GPU, here in Triton's interpreter: near its steps in float64, and each node the same bits in a
tree, in a prompt or alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.device import DEVICE
from understudy.kernels.recurrence import RuleStep, fold_anywhere, most_walked, recur_anywhere
from understudy.models.recurrent_layers import channel_rule
from understudy.recurrent import DEEPEST, FOLD, RecurrentShape, RecurrentState, Room, begins, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

pytest.importorskip("triton")
from understudy.kernels.gpu import rule

# heads of keys, heads of values, numbers in a key and in a value
SIZES = [(1, 2, 16, 20), (2, 2, 24, 16), (1, 1, 5, 40), (1, 3, 32, 8)]
# the same, where each channel of a key forgets at a speed of its own
CHANNELS = [(2, 2, 16, 16), (1, 1, 24, 40)]
Sizes = tuple[int, int, int, int]
SHAPES = [*((sizes, False) for sizes in SIZES), *((sizes, True) for sizes in CHANNELS)]


def shape_of(sizes: Sizes, by_channel: bool = False) -> RecurrentShape:
    return RecurrentShape(1, 2, *sizes, by_channel=by_channel)


def steps(shape: RecurrentShape, count: int, delta: bool, seed: int) -> RuleStep:
    """What so many tokens bring, drawn at random."""
    torch.manual_seed(seed)
    key = torch.nn.functional.normalize(torch.randn(count, shape.key_heads, shape.key_size), dim=-1)
    query = torch.randn(count, shape.key_heads, shape.key_size)
    each = (shape.key_size,) if shape.by_channel else ()
    decay = (-torch.randn(count, shape.value_heads, *each).abs() * 0.1).exp()
    beta = torch.rand(count, shape.value_heads) if delta else None
    return RuleStep(query, key, torch.randn(count, shape.value_heads, shape.value_size), decay, beta)


def at(step: RuleStep, places: Tensor) -> RuleStep:
    """The steps at `places`, on the device."""
    parts = (step.query, step.key, step.value, step.decay, step.beta)
    return RuleStep(*(None if part is None else part[places].to(DEVICE) for part in parts))  # type: ignore[arg-type]


def one_by_one(shape: RecurrentShape, step: RuleStep) -> Tensor:
    """The rule, step by step in float64: [n, value heads, value size]."""
    state = torch.zeros(shape.value_heads, shape.key_size, shape.value_size, dtype=torch.float64)
    shared, found = shape.value_heads // shape.key_heads, []
    for i in range(len(step.key)):
        key, query = (part[i].double().repeat_interleave(shared, 0) for part in (step.key, step.query))
        decay = step.decay[i].double()
        state = state * (decay[..., None] if shape.by_channel else decay[:, None, None])
        update = step.value[i].double()
        if step.beta is not None:
            update = step.beta[i].double()[:, None] * (update - torch.einsum("hkv,hk->hv", state, key))
        state = state + key[..., None] * update[:, None]
        found.append(torch.einsum("hkv,hk->hv", state, query))
    return torch.stack(found)


def opened(shape: RecurrentShape, rows: int = 1, scratch: int = 1) -> RecurrentState:
    state = RecurrentState(shape, Room(rows, scratch, torch.float32, DEVICE), rule.fold)
    for held in state.records:
        held.fill_(torch.nan)
    return state


def run(state: RecurrentState, step: RuleStep, nodes: Nodes) -> Tensor:
    """What a pass does: node i of the rows' nodes brings step i."""
    for row, position in begins(nodes):
        state.advance(row, position)
    found = rule.recur(at(step, torch.arange(len(nodes))), state, nodes.to(DEVICE), together=False)
    for row, position in tops(nodes):
        state.walked(row, position)
    return found.cpu()


def read(state: RecurrentState, step: RuleStep, row: int, start: int, cuts: list[int]) -> Tensor:
    """A text's steps from `start` on, in pieces that end at `cuts`; each piece is accepted."""
    found = []
    for end in cuts:
        nodes = Nodes.of(TokenTree.chain([0] * (end - start)), row, start)
        found.append(run(state, RuleStep(*_cut(step, start, end)), nodes))
        state.keep(row, start, AcceptedPath(torch.arange(end - start)))
        start = end
    return torch.cat(found)


def _cut(step: RuleStep, start: int, end: int) -> tuple[Tensor, ...]:
    part = step[start:end]
    return part.query, part.key, part.value, part.decay, part.beta  # type: ignore[return-value]


def texts(state: RecurrentState, length: int, seed: int) -> None:
    """Put anything in the place of a text of `length` tokens in row 0: what is folded, and the records since. What no node may read
    stays without a number."""
    torch.manual_seed(seed)
    state.newest[0] = max(0, (length + DEEPEST) // FOLD - 1)
    for number in {max(0, state.newest[0] - 1), state.newest[0]} - {0}:
        state.states[0, number % 2] = torch.randn_like(state.states[0, 0])
    if state.newest[0] == 0:
        state.states[0, 0] = 0
    first = FOLD * max(0, state.newest[0] - 1)
    places = torch.arange(first, length) % state.places
    for held in state.records:
        held[0, places] = torch.rand_like(held[0, places]) if held is state.decays else 0.1 * torch.randn_like(held[0, places])


@pytest.mark.parametrize(("kind", "delta"), [(SHAPES[0], True), (SHAPES[2], False), (SHAPES[-1], True)])
def test_a_text_is_the_rule_step_by_step_however_it_is_cut(kind: tuple[Sizes, bool], delta: bool) -> None:
    """Through the folds of a walk, those between two passes, and places that are written again."""
    shape = shape_of(*kind)
    step = steps(shape, 270, delta, 1)
    found = read(opened(shape), step, 0, 0, [60, 120, 185, 186, 250, 270])
    wanted = one_by_one(shape, step)
    assert (found.double() - wanted).norm() < 1e-6 * wanted.norm()
    again = read(opened(shape), step, 0, 0, [1, 65, 129, 194, 207, 270])
    assert torch.equal(found, again)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 1 << 20), max_size=14), st.integers(0, 280), st.sampled_from(SHAPES), st.booleans(), st.integers(0, 99)
)
def test_a_node_has_the_bits_of_its_path_read_token_by_token(
    draws: list[int], length: int, kind: tuple[Sizes, bool], delta: bool, seed: int
) -> None:
    """Parents are drawn at random; beside the tree a text of another row is read."""
    tree = TokenTree.of([0] * (len(draws) + 1), [-1, *(draw % (i + 1) for i, draw in enumerate(draws))])
    shape = shape_of(*kind)
    step = steps(shape, len(tree) + 3, delta, seed)
    state = opened(shape, rows=2, scratch=len(tree))
    state.states[1] = 0
    texts(state, length, seed)
    kept = [held.clone() for held in (*state.records, state.states)]
    nodes = Nodes.join([Nodes.of(tree, 0, length), Nodes.of(TokenTree.chain([0] * 3), 1, 0)])
    found = run(state, step, nodes)
    node = seed % len(tree)
    path = tree.ancestors[node].nonzero()[:, 0]
    for held, before in zip((*state.records, state.states), kept, strict=True):
        held.copy_(before)
    for depth, index in enumerate(path.tolist()):
        alone = run(state, step[index : index + 1], Nodes.of(TokenTree.chain([0]), 0, length + depth))
        assert torch.equal(alone[0], found[index]), depth
    assert found.isfinite().all()
    # the deepest of trees read nothing that is not folded
    assert int(nodes.positions.max()) // FOLD - 1 <= max(state.newest[0], 0)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 200), st.integers(1, 6), st.sampled_from(SHAPES), st.booleans(), st.integers(0, 99))
def test_levels_are_near_what_torch_gives(
    length: int, width: int, kind: tuple[Sizes, bool], delta: bool, seed: int
) -> None:
    """Nodes that follow one, told as a device's search tells them; the records that they leave are the same."""
    shape = shape_of(*kind)
    level = Nodes.of(TokenTree.of([0] * (width + 1), [-1, *[0] * width]), 0, length)[1:]
    step = steps(shape, width, delta, seed)
    states = [RecurrentState(shape, Room(1, width + 1, torch.float32, DEVICE), fold) for fold in (rule.fold, fold_anywhere)]
    for state in states:
        texts(state, length + 1, seed)
    brought = at(step, torch.arange(width)), level.to(DEVICE)
    found = rule.recur(brought[0], states[0], brought[1], together=True)
    if shape.by_channel:
        wanted = channel_rule._recur(brought[0], states[1], brought[1])
    else:
        wanted = recur_anywhere(brought[0], states[1], brought[1], together=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(states[0].records, states[1].records, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_which_layers_have_kernels() -> None:
    assert rule.serves(shape_of((16, 32, 128, 128))) and rule.serves(RecurrentShape(64, 3))
    assert not rule.serves(shape_of((1, 1, 512, 16)))
    assert rule.serves(shape_of((4, 4, 128, 128), True)) and not rule.serves(shape_of((4, 4, 256, 16), True))
    # keys that several heads share, and steps that decays are made of
    assert not rule.serves(shape_of((1, 2, 16, 16), True))
    assert not rule.serves(RecurrentShape(1, 2, 1, 64, 16, 1, by_channel=True, rated=True))
    assert most_walked(opened(shape_of(SIZES[0]))) >= FOLD
