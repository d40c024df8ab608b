"""Blocks of a level in one call give what they give one by one, to the last bit, wherever keys and values lie."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_blocks import product
from understudy.kernels import draft_chain, draft_layer, team
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.draft_chain import BlockParts, LevelChain
from understudy.kernels.draft_layer import attend
from understudy.kernels.draft_product import Joined
from understudy.kernels.head_form import HeadForm, Turning
from understudy.kernels.join_form import GateKind, JoinForm, Norm
from understudy.layer_states import FullState, LayerShape
from understudy.tree import Nodes, TokenTree

HIDDEN, SIZE = 64, 16
TURNS = torch.rand(1, 40, SIZE // 2).repeat(1, 1, 2)


def part(kv_heads: int, heads: int, between: int, window: int, usual: bool = True) -> BlockParts[Joined]:
    """`usual`: without norms of heads and of results, and gated by silu."""
    norm, head = Norm(torch.rand(HIDDEN) + 0.5, 1e-5), Norm(torch.rand(SIZE) + 0.5, 1e-5)
    made = [product(count * SIZE, HIDDEN, 64) for count in (heads, kv_heads, kv_heads)]
    gate = JoinForm(norm, gate=GateKind.SILU if usual else GateKind.GELU)
    gated = Joined([product(between, HIDDEN, 64) for _ in range(2)], gate)
    after = JoinForm() if usual else JoinForm(after=norm)
    output, down = Joined([product(HIDDEN, heads * SIZE, 32)], after), Joined([product(HIDDEN, between, 64)], after)
    form = HeadForm(AttentionSpec(0.25, window), Turning.HALVES, None if usual else (head, head))
    return BlockParts(Joined(made, JoinForm(norm)), form, output, gated, down)


@cache
def parts() -> list[BlockParts[Joined]]:
    """Made by the first test that asks: kernels are compiled for it, which no process that only looks for tests should wait for."""
    return [part(2, 4, 128, 0), part(1, 4, 64, 7), part(4, 4, 192, 0, usual=False)]


@cache
def one_chain() -> LevelChain:
    return LevelChain(parts())


SHAPES = [LayerShape(heads, SIZE, SIZE) for heads in (2, 1, 4)]


def filled(dtype: torch.dtype) -> list[FullState]:
    states = [FullState(shape, 2, 64, dtype) for shape in SHAPES]
    for i, state in enumerate(states):
        chance = torch.Generator().manual_seed(i)
        for slab in (state.keys, state.values):
            slab.copy_(torch.randn(slab.shape, generator=chance))
    return states


def one_by_one(hidden: Tensor, turns: tuple[Tensor, Tensor], states: list[FullState], nodes: Nodes) -> Tensor:
    x = hidden[0]
    for own, state in zip(parts(), states, strict=True):
        x = own.output(attend(own.made(x), turns, state, nodes, own.heads), x)
        x = own.down(own.gated(x), x)
    return x[None]


def given_to(nodes: Nodes, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    hidden = torch.randn(1, len(nodes), HIDDEN, generator=torch.Generator().manual_seed(len(nodes))).to(dtype)
    angles = TURNS[0, : len(nodes)] * 6
    return hidden, (angles.cos().to(dtype), angles.sin().to(dtype))


def same(chain: LevelChain, nodes: Nodes, dtype: torch.dtype) -> None:
    ours, others = filled(dtype), filled(dtype)
    hidden, turns = given_to(nodes, dtype)
    before = hidden.clone()
    found = chain(hidden, turns, ours, nodes)
    assert torch.equal(found, one_by_one(hidden, turns, others, nodes)) and torch.equal(hidden, before)
    for state, other in zip(ours, others, strict=True):
        assert torch.equal(state.keys, other.keys) and torch.equal(state.values, other.values)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=12), st.integers(0, 20), st.integers(0, 1),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_a_chain_gives_what_its_blocks_give(chances: list[int], length: int, row: int, dtype: torch.dtype) -> None:
    parents = [-1, *(chance % (i + 1) for i, chance in enumerate(chances))]
    nodes = Nodes.of(TokenTree.of([0] * len(parents), parents), row, length)
    same(one_chain(), nodes, dtype)
    same(one_chain(), nodes[len(nodes) // 2 :], dtype)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_threads_give_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "threads", lambda: threads)
    monkeypatch.setattr(draft_layer, "SMALL", 0)
    same(LevelChain(parts()), Nodes.of(TokenTree.of([0] * 6, [-1, 0, 0, 1, 2, 2]), 1, 30), torch.bfloat16)


def test_a_table_is_made_once_for_a_number_of_nodes_and_goes_with_the_keys() -> None:
    chain, states = LevelChain(parts()), filled(torch.bfloat16)
    made = []
    for length in (3, 9, 20):
        for count in (1, 4):
            nodes = Nodes.of(TokenTree.chain([0] * count), 0, length)
            hidden, turns = given_to(nodes, torch.bfloat16)
            chain(hidden, turns, states, nodes)
        made.append([table for table, _ in chain._tables.values()])
    assert len(made[0]) == 2 and all(a is b for later in made[1:] for a, b in zip(made[0], later, strict=True))
    moved = filled(torch.bfloat16)
    chain(hidden, turns, moved, nodes)
    assert len(chain._tables) == 1, "what says where old keys lie is gone"
    assert made[0][0].shape[1] * 8 == draft_chain.LINE_BYTES
