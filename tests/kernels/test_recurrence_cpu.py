"""The processor's kernels of recurrent layers: the rule step by step, and the same bits for a path whatever runs beside it."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import path_to, trees
from understudy.kernels import recurrence_cpu
from understudy.kernels.recurrence import RuleStep, fold_anywhere, recur_anywhere
from understudy.kernels.recurrence_cpu import fold, recur
from understudy.recurrent import FOLD, RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

# heads of keys and of values, sizes of both: below a vector, beside one, several, and as in real models
SHAPES = [(2, 4, 3, 6), (1, 3, 20, 17), (2, 2, 32, 64), (1, 4, 128, 64), (1, 2, 128, 128)]


def shape_of(sizes: tuple[int, int, int, int]) -> RecurrentShape:
    return RecurrentShape(4, 2, *sizes)


def opened(shape: RecurrentShape, rows: int = 1, scratch: int = 64) -> RecurrentState:
    """A state whose records hold what a row of an earlier text left: anything."""
    state = RecurrentState(shape, Room(rows, scratch, torch.float32), fold)
    for tensor in state.records:
        tensor.fill_(torch.nan)
    return state


def drawn(shape: RecurrentShape, count: int, seed: int, delta: bool, strength: float = 0.1) -> RuleStep:
    """What each position of a random text brings. strength: how much the log decay is, on average."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(count, *size, generator=random)

    heads, values = shape.key_heads, shape.value_heads
    key, query = (torch.nn.functional.normalize(normal(heads, shape.key_size), dim=-1) for _ in range(2))
    beta = normal(values).sigmoid() if delta else None
    return RuleStep(query, key, normal(values, shape.value_size), (-normal(values).abs() * strength).exp(), beta)


def part_of(step: RuleStep, at: Tensor) -> RuleStep:
    return RuleStep(step.query[at], step.key[at], step.value[at], step.decay[at], None if step.beta is None else step.beta[at])


def stepwise(step: RuleStep, dtype: torch.dtype) -> Tensor:
    """[n, value heads, value size]: the rule, one step after another."""
    shared = step.value.shape[1] // step.key.shape[1]
    state = torch.zeros(step.value.shape[1], step.key.shape[2], step.value.shape[2], dtype=dtype)
    found = []
    for i in range(len(step.key)):
        key, query = (t[i].to(dtype).repeat_interleave(shared, 0) for t in (step.key, step.query))
        state = state * step.decay[i].to(dtype)[:, None, None]
        u = step.value[i].to(dtype)
        if step.beta is not None:
            u = step.beta[i].to(dtype)[:, None] * (u - torch.einsum("hkv,hk->hv", state, key))
        state = state + key[..., None] * u[:, None]
        found.append(torch.einsum("hkv,hk->hv", state, query))
    return torch.stack(found)


def read(state: RecurrentState, step: RuleStep, nodes: Nodes) -> Tensor:
    """`recur`, after folding what it needs."""
    for row, position in tops(nodes):
        state.advance(row, position)
    return recur(step, state, nodes)


def read_text(state: RecurrentState, step: RuleStep, count: int, tile: int, row: int = 0) -> Tensor:
    """The first `count` positions of a text, in tiles."""
    nodes = Nodes.of(TokenTree.chain([0] * count), row, 0)
    mine = step[:count]
    found = [read(state, mine[at : at + tile], nodes[at : at + tile]) for at in range(0, count, tile)]
    state.keep(row, 0, AcceptedPath(torch.arange(count)))
    return torch.cat([*found, torch.empty(0, *step.value.shape[1:])])


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("strength", [0.02, 3.0])
def test_a_long_text_is_the_rule_step_by_step(sizes: tuple[int, int, int, int], delta: bool, strength: float) -> None:
    shape = shape_of(sizes)
    step = drawn(shape, 420, 1, delta, strength)
    exact = stepwise(step, torch.float64)
    found = read_text(opened(shape), step, 420, 32)
    error, usual = ((t.double() - exact).abs().max() for t in (found, stepwise(step, torch.float32)))
    assert error < 4 * usual < 1e-4


def test_what_decays_to_nothing_is_nothing_and_nothing_overflows() -> None:
    shape = shape_of((1, 3, 16, 16))
    step = drawn(shape, 200, 2, True, 60.0)
    step.decay[:50] = 0
    step.decay[60:130] = 1e-38
    found = read_text(opened(shape), step, 200, 32)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double(), stepwise(step, torch.float64), atol=2e-6, rtol=0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(max_examples=25, deadline=None)
@given(trees(30), st.integers(0, 200), st.sampled_from(SHAPES), st.booleans(), st.integers(1, 9), st.integers(0, 1000))
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(
    tree: TokenTree, length: int, sizes: tuple[int, int, int, int], delta: bool, tile: int, seed: int
) -> None:
    shape = shape_of(sizes)
    text = drawn(shape, length + len(tree), seed, delta)
    beside = drawn(shape, 80, seed + 1, delta)
    # another row, more places, larger chunks, and another text in the same passes
    state = opened(shape, 3, 100)
    read_text(state, text, length, 32, row=2)
    read_text(state, beside, 75, 75, row=0)
    nodes = Nodes.join([Nodes.of(tree, 2, length), Nodes.of(TokenTree.chain([0] * 5), 0, 75)])
    both = RuleStep(*(torch.cat([mine[length:], other[75:]]) for mine, other in zip(fields(text), fields(beside), strict=True)))
    if not delta:
        both = RuleStep(both.query, both.key, both.value, both.decay)
    found = torch.cat([read(state, both[at : at + tile], nodes[at : at + tile]) for at in range(0, len(nodes), tile)])
    node = len(tree) - 1 - seed % min(len(tree), 4)
    path = torch.tensor(path_to(tree, node))
    alone = opened(shape)
    read_text(alone, text, length, 1)
    chain = Nodes.of(TokenTree.chain([0] * len(path)), 0, length)
    bits = [read(alone, part_of(text, length + path[i : i + 1]), chain[i : i + 1]) for i in range(len(path))]
    assert torch.equal(found[path], torch.cat(bits))


def fields(step: RuleStep) -> tuple[Tensor, ...]:
    """The tensors of a step; without shares, zeros in their place."""
    return step.query, step.key, step.value, step.decay, step.decay * 0 if step.beta is None else step.beta


def test_sharing_the_heads_out_changes_no_bit(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.setattr(recurrence_cpu, "SMALL", 0)
    shape = shape_of((2, 6, 32, 48))
    step = drawn(shape, 300, 3, True)
    torch.set_num_threads(1)
    one = opened(shape)
    alone = read_text(one, step, 300, 32)
    for count in (2, 3):
        torch.set_num_threads(count)
        other = opened(shape)
        assert torch.equal(alone, read_text(other, step, 300, 32)) and torch.equal(one.states, other.states)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("sizes", SHAPES)
def test_it_agrees_with_plain_torch(sizes: tuple[int, int, int, int], delta: bool) -> None:
    shape = shape_of(sizes)
    step = drawn(shape, 150, 4, delta)
    tree = TokenTree.of([0] * 8, [-1, 0, 0, 1, 2, 1, 3, 5])
    states = [opened(shape), opened(shape)]
    for state in states:
        for tensor in state.records:
            tensor.zero_()
        read_text(state, step, 140, 32)
    nodes = Nodes.of(tree, 0, 140)
    found = recur(step[140:148], states[0], nodes)
    torch.testing.assert_close(found, recur_anywhere(step[140:148], states[1], nodes, False), atol=2e-6, rtol=2e-6)
    fold(states[0], 0, 1)
    fold_anywhere(states[1], 0, 1)
    assert states[0].newest[0] >= 1 and float(states[0].states[0, 2 % 2].abs().max()) > 0.1
    torch.testing.assert_close(states[0].states, states[1].states, atol=2e-6, rtol=2e-6)


def test_a_fold_is_the_state_after_its_tokens() -> None:
    shape = shape_of((1, 2, 24, 20))
    step = drawn(shape, 3 * FOLD, 5, False)
    state = opened(shape)
    read_text(state, step, 3 * FOLD, 64)
    expected = torch.zeros(2, 24, 20, dtype=torch.float64)
    for i in range(2 * FOLD):
        outer = step.key[i].double().repeat_interleave(2, 0)[..., None] * step.value[i].double()[:, None]
        expected = expected * step.decay[i].double()[:, None, None] + outer
    torch.testing.assert_close(state.states[0, 0].double(), expected, atol=2e-6, rtol=0)
