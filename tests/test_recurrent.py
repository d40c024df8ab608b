"""What a recurrent layer keeps: folding, accepted paths, going back and saving, seen by what the next token reads."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import trees
from understudy.cache import Cache
from understudy.kernels.recurrence import RuleStep, convolve_anywhere, fold_anywhere, recur_anywhere
from understudy.layer_states import LayerShape
from understudy.recurrent import FOLD, LATE, RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

SHAPE = RecurrentShape(channels=2, taps=3, key_heads=1, value_heads=2, key_size=2, value_size=3)
TEXT = torch.Generator().manual_seed(5)
KEYS, VALUES = torch.randn(900, 1, 2, generator=TEXT), torch.randn(900, 2, 3, generator=TEXT)


def step(places: Tensor) -> RuleStep:
    decay = torch.full((len(places), 2), 0.97)
    return RuleStep(KEYS[places], KEYS[places], VALUES[places], decay, torch.full((len(places), 2), 0.5))


def read(state: RecurrentState, row: int, length: int, count: int) -> Tensor:
    """Run the next `count` tokens of the text above `length`."""
    nodes = Nodes.of(TokenTree.chain([0] * count), row, length)
    found = []
    for start in range(0, count, 32):
        part = nodes[start : start + 32]
        for each, position in tops(part):
            state.advance(each, position)
        found.append(recur_anywhere(step(part.positions), state, part, together=False))
    return torch.cat(found)


def opened(rows: int = 2) -> RecurrentState:
    return RecurrentState(SHAPE, Room(rows, 32, torch.float32), fold_anywhere)


@cache
def whole() -> Tensor:
    return read(opened(), 0, 0, 900)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_whatever_a_row_went_through_the_next_token_reads_the_same(data: st.DataObject) -> None:
    state, expected = opened(), whole()
    length = 0
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["read", "read", "back", "save", "copy"]))
        if what == "read":
            count = data.draw(st.integers(1, 200))
            if length + count < 890:
                assert torch.equal(read(state, 0, length, count), expected[length : length + count])
                state.keep(0, length, AcceptedPath(torch.arange(count)))
                length += count
        elif what == "save":
            state.save(0)
            assert state.saved[0] <= length
        elif what == "copy":
            to = state.reach(0, data.draw(st.integers(0, length)), 0)
            state.copy(0, 1, to)
            assert torch.equal(read(state, 1, to, 5), expected[to : to + 5])
        else:
            wanted = data.draw(st.integers(0, length))
            reached = state.reach(0, wanted, 0)
            assert reached <= wanted and (length - wanted > LATE or reached == wanted)
            state.rewind(0, reached)
            length = reached
        assert torch.equal(read(state, 0, length, 3), expected[length : length + 3])


def test_a_row_goes_back_a_few_tokens_wherever_it_ends() -> None:
    state = opened()
    for length in range(1, 3 * FOLD):
        read(state, 0, length - 1, 1)
        state.keep(0, length - 1, AcceptedPath(torch.tensor([0])))
        back = max(0, length - LATE)
        assert state.reach(0, back, 0) == back


def test_a_saved_row_goes_back_to_the_last_fold_before_it_was_saved() -> None:
    state, expected = opened(), whole()
    read(state, 0, 0, 300)
    state.keep(0, 0, AcceptedPath(torch.arange(300)))
    state.save(0)
    read(state, 0, 300, 500)
    state.keep(0, 300, AcceptedPath(torch.arange(500)))
    assert state.reach(0, 700, 0) == state.reach(0, 300, 0) == 256 and state.reach(0, 255, 0) == 0
    state.rewind(0, 256)
    assert torch.equal(read(state, 0, 256, 90), expected[256:346])
    assert state.reach(0, 256, 0) == 256, "what was saved is there for another time"
    state.rewind(0, 0)
    assert state.saved[0] == 0, "what a text that was given up had saved is of no use"


def test_a_pass_that_fails_in_a_long_prompt_goes_back_to_its_start_and_a_tree_costs_nothing() -> None:
    state = opened()
    read(state, 0, 0, 70)
    state.keep(0, 0, AcceptedPath(torch.arange(70)))
    read(state, 0, 70, 20)
    assert state.reach(0, 70, 0) == 70
    read(state, 0, 70, 500)
    assert state.reach(0, 70, 0) == 0


def test_what_a_row_takes_is_what_was_foretold() -> None:
    for scratch in (1, 320):
        room = Room(3, scratch, torch.bfloat16)
        assert RecurrentState(SHAPE, room, fold_anywhere).nbytes == 3 * SHAPE.row_bytes(scratch, torch.bfloat16)


def test_a_cache_with_both_kinds_of_layers_goes_back_as_far_as_both_can() -> None:
    cache = Cache([LayerShape(1, 2, 2), LayerShape(0, 2, 2, recurrent=SHAPE)], 1, 960, torch.float32, fold=fold_anywhere)
    state = cache.recurrent[1]
    for start in range(0, 800, 100):
        cache.begin_pass(Nodes.of(TokenTree.chain([0] * 100), 0, start))
        read(state, 0, start, 100)
        cache.keep(0, torch.arange(100))
        if start == 300:
            cache.save(0)
    assert cache.lengths == [800] and cache.deepest == FOLD - LATE
    assert cache.rewind(0, 790) == 790 and cache.rewind(0, 600) == 384 and cache.rewind(0, 100) == 0


def test_a_cache_that_cannot_fold_holds_no_recurrent_layer() -> None:
    with pytest.raises(AssertionError, match="folds"):
        Cache([LayerShape(0, 2, 2, recurrent=SHAPE)], 1, 64, torch.float32)


@settings(max_examples=40, deadline=None)
@given(trees(20), st.integers(0, 150), st.integers(0, 2), st.integers(0, 1))
def test_each_convolution_of_a_layer_sees_a_nodes_own_path(tree: TokenTree, length: int, number: int, kept: int) -> None:
    """In a tree above a text that was read in pieces, and after a path of it was accepted: the last three inputs there."""
    shape = RecurrentShape(channels=2, taps=3, further=(3, 2))
    state, channels = RecurrentState(shape, Room(2, 32, torch.float32), fold_anywhere), (2, 3, 2)[number]
    own, weight = state.convolved(number), torch.tensor([[4.0, 2.0, 1.0]]).repeat(channels, 1)
    random = torch.Generator().manual_seed(7)
    text = torch.randint(1, 9, (length, channels), generator=random).float()
    for start in range(0, length, 30):
        given = text[start : start + 30]
        part = Nodes.of(TokenTree.chain([0] * len(given)), 1, start)
        convolve_anywhere(given, weight, None, own, part)
        state.keep(1, start, AcceptedPath(torch.arange(len(part))))
    x = torch.randint(1, 9, (len(tree), channels), generator=random).float()
    found = convolve_anywhere(x, weight, None, own, Nodes.of(tree, 1, length))
    paths = [tree.ancestors[node].nonzero()[:, 0] for node in range(len(tree))]
    for node, path in enumerate(paths):
        seen = torch.cat([torch.zeros(2, channels), text, x[path]])[-3:]
        assert torch.equal(found[node], (seen * torch.tensor([4.0, 2.0, 1.0])[:, None]).sum(0))
    path = max(paths, key=len) if kept else paths[0]
    state.keep(1, length, AcceptedPath(path))
    state.copy(1, 0, length + len(path))
    after = Nodes.of(TokenTree.chain([0]), 0, length + len(path))
    last = torch.cat([torch.zeros(2, channels), text, x[path], x[:1]])[-3:]
    expected = (last * torch.tensor([4.0, 2.0, 1.0])[:, None]).sum(0)
    assert torch.equal(convolve_anywhere(x[:1], weight, None, state.convolved(number), after)[0], expected)
