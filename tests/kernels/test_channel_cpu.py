"""The processor's kernels of layers that forget by channel: the rule step by step, and the same bits for a path whatever runs
beside it."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import path_to, trees
from understudy.kernels import channel_cpu
from understudy.kernels.recurrence import RuleStep
from understudy.kernels.recurrence_cpu import fold
from understudy.models.recurrent_layers.channel_steps import recur
from understudy.recurrent import FOLD, RecurrentShape, RecurrentState, Room, fold_by_channel, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

# heads of keys and of values, sizes of both: below a vector, beside one, several, and as in real models; then channels, and numbers
# that each has
GIVEN = [(2, 4, 3, 6), (3, 3, 20, 17), (1, 2, 32, 70), (2, 2, 128, 128)]
RATED = [(6, 4), (70, 16), (64, 16), (130, 20)]
Sizes = tuple[int, ...]


def shape_of(sizes: Sizes) -> RecurrentShape:
    if len(sizes) == 2:
        return RecurrentShape(4, 2, 1, sizes[0], sizes[1], 1, by_channel=True, rated=True)
    return RecurrentShape(4, 2, *sizes, by_channel=True)


def opened(shape: RecurrentShape, rows: int = 1, scratch: int = 64) -> RecurrentState:
    """A state whose records hold what a row of an earlier text left: anything."""
    state = RecurrentState(shape, Room(rows, scratch, torch.float32), fold)
    for tensor in state.records:
        tensor.fill_(torch.nan)
    if shape.rated:
        state.rates = -3 * torch.rand(shape.value_heads, shape.key_size, generator=torch.Generator().manual_seed(9))
    return state


def drawn(shape: RecurrentShape, count: int, seed: int, delta: bool = True, strength: float = 0.1) -> RuleStep:
    """What each position of a random text brings. strength: how much the log decay is, on average."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(count, *size, generator=random)

    heads, values = shape.key_heads, shape.value_heads
    key, query = (torch.nn.functional.normalize(normal(heads, shape.key_size), dim=-1) for _ in range(2))
    value = normal(values, shape.value_size)
    if shape.rated:
        return RuleStep(query, key, value, normal(values).abs() * strength)
    beta = normal(values).sigmoid() if delta else None
    return RuleStep(query, key, value, (-normal(values, shape.key_size).abs() * strength).exp(), beta)


def part_of(step: RuleStep, at: Tensor) -> RuleStep:
    return RuleStep(step.query[at], step.key[at], step.value[at], step.decay[at], None if step.beta is None else step.beta[at])


def stepwise(state: RecurrentState, step: RuleStep, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rule, one step after another: [n, value heads, value size], and the state after the last."""
    shared = step.value.shape[1] // step.key.shape[1]
    one = torch.zeros(step.value.shape[1], step.key.shape[2], step.value.shape[2], dtype=dtype)
    decay = step.decay.to(dtype)
    if state.rates is not None:
        decay = torch.exp(state.rates.to(dtype) * decay[..., None])
    found = []
    for i in range(len(step.key)):
        key, query = (t[i].to(dtype).repeat_interleave(shared, 0) for t in (step.key, step.query))
        one = one * decay[i][..., None]
        u = step.value[i].to(dtype)
        if step.beta is not None:
            u = step.beta[i].to(dtype)[:, None] * (u - torch.einsum("hkv,hk->hv", one, key))
        one = one + key[..., None] * u[:, None]
        found.append(torch.einsum("hkv,hk->hv", one, query))
    return torch.stack(found), one


def read(state: RecurrentState, step: RuleStep, nodes: Nodes) -> Tensor:
    """The rule, after folding what it needs."""
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


@pytest.mark.parametrize(("sizes", "delta"), [*((sizes, True) for sizes in [*GIVEN, *RATED]), (GIVEN[0], False), (GIVEN[3], False)])
@pytest.mark.parametrize("strength", [0.02, 3.0])
def test_a_long_text_is_the_rule_step_by_step(sizes: Sizes, delta: bool, strength: float) -> None:
    shape = shape_of(sizes)
    step, state = drawn(shape, 300, 1, delta, strength), opened(shape)
    exact = stepwise(state, step, torch.float64)[0]
    found = read_text(state, step, 300, 32)
    error, usual = ((t.double() - exact).abs().max() for t in (found, stepwise(state, step, torch.float32)[0]))
    assert error < 4 * usual < 1e-4


@pytest.mark.parametrize("sizes", [GIVEN[1], RATED[1]])
def test_what_decays_to_nothing_is_nothing(sizes: Sizes) -> None:
    shape = shape_of(sizes)
    step, state = drawn(shape, 150, 2), opened(shape)
    step.decay[:50] = 1e9 if shape.rated else 0
    step.decay[60:130] = 30.0 if shape.rated else 1e-38
    found = read_text(state, step, 150, 32)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double(), stepwise(state, step, torch.float64)[0], atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(trees(30), st.integers(0, 200), st.sampled_from([*GIVEN, *RATED]), st.booleans(), st.integers(1, 9), st.integers(0, 1000))
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(
    tree: TokenTree, length: int, sizes: Sizes, delta: bool, tile: int, seed: int
) -> None:
    shape = shape_of(sizes)
    text, beside = drawn(shape, length + len(tree), seed, delta), drawn(shape, 80, seed + 1, delta)
    # another row, more places, larger chunks, and another text in the same passes
    state = opened(shape, 3, 100)
    read_text(state, text, length, 32, row=2)
    read_text(state, beside, 75, 75, row=0)
    nodes = Nodes.join([Nodes.of(tree, 2, length), Nodes.of(TokenTree.chain([0] * 5), 0, 75)])
    both = joined(text[length:], beside[75:])
    found = torch.cat([read(state, both[at : at + tile], nodes[at : at + tile]) for at in range(0, len(nodes), tile)])
    node = len(tree) - 1 - seed % min(len(tree), 4)
    path = torch.tensor(path_to(tree, node))
    alone = opened(shape)
    bits = [read_text(alone, text, length, 1)[:0]]
    chain = Nodes.of(TokenTree.chain([0] * len(path)), 0, length)
    bits += [read(alone, part_of(text, length + path[i : i + 1]), chain[i : i + 1]) for i in range(len(path))]
    assert torch.equal(found[path], torch.cat(bits))


def joined(one: RuleStep, two: RuleStep) -> RuleStep:
    parts = [(one.query, two.query), (one.key, two.key), (one.value, two.value), (one.decay, two.decay)]
    beta = None if one.beta is None or two.beta is None else torch.cat([one.beta, two.beta])
    return RuleStep(*(torch.cat(pair) for pair in parts), beta)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [(2, 6, 32, 140), (300, 16)])
def test_sharing_a_state_out_changes_no_bit(sizes: Sizes, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.setattr(channel_cpu, "SMALL", 0)
    shape = shape_of(sizes)
    step = drawn(shape, 200, 3)
    torch.set_num_threads(1)
    one = opened(shape)
    alone = read_text(one, step, 200, 32)
    for count in (2, 3):
        torch.set_num_threads(count)
        other = opened(shape)
        assert torch.equal(alone, read_text(other, step, 200, 32)) and torch.equal(one.states, other.states)


@pytest.mark.parametrize("sizes", [*GIVEN, *RATED])
def test_a_fold_is_the_state_after_its_tokens(sizes: Sizes) -> None:
    """From records as from a state that was kept, and in plain torch nearly the same."""
    shape = shape_of(sizes)
    step = drawn(shape, 3 * FOLD, 5)
    state = opened(shape)
    read_text(state, step, 3 * FOLD, 64)
    assert state.newest[0] == 2 and state.tips is not None
    kept = state.states.clone()
    expected = stepwise(state, step[: 2 * FOLD], torch.float64)[1]
    torch.testing.assert_close(kept[0, 0].double(), expected, atol=5e-6, rtol=0)
    state.tips.rewind(0, 0)
    state.states[0, 0].fill_(torch.nan)
    fold(state, 0, 1)
    assert torch.equal(state.states, kept)
    fold_by_channel(state, 0, 1)
    torch.testing.assert_close(state.states, kept, atol=5e-6, rtol=5e-6)
