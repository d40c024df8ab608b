"""Biases and penalties on a device are those of the host, for nodes of several sequences at once."""

import random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.adjust import Adjustment
from understudy.drafters.device_adjust import DeviceAdjustment, paths
from understudy.drafters.growing_tree import MOST_NODES
from understudy.kernels.search_columns import DEEP, ROW, VALID, WHAT
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence

VOCABULARY = 9
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=8)


def room(nbytes: int) -> torch.Tensor:
    """What was there before must not matter."""
    return torch.full((nbytes,), 255, dtype=torch.uint8)


@st.composite
def sequences(draw: Any) -> TokenSequence:
    params = SamplingParams(
        repetition_penalty=draw(st.sampled_from([1.0, 0.6, 1.7])), presence_penalty=draw(st.sampled_from([0.0, 0.8])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.5])), min_tokens=draw(st.sampled_from([0, 4, 12])),
        logit_bias=draw(st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, 1.5]), max_size=2)),
    )  # fmt: skip
    prompt, made = draw(tokens), draw(tokens)
    stops = frozenset(draw(st.sets(st.integers(0, VOCABULARY - 1), max_size=3)))
    return TokenSequence(0, [*prompt, 1, *made], params, stops, limit=99, prompt_length=len(prompt) + 1)


@settings(max_examples=40)
@given(st.lists(sequences(), min_size=1, max_size=3), st.lists(tokens, min_size=1, max_size=9), st.integers(0, 99))
def test_scores_are_those_of_the_host(texts: list[TokenSequence], below: list[list[int]], seed: int) -> None:
    chance = random.Random(seed)
    rows = [chance.randrange(len(texts)) for _ in below]
    adjust = DeviceAdjustment(3, 32, 2, room, room)
    adjust.give(texts)
    logits = torch.randn(len(below), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    path = torch.full((len(below), MOST_NODES), -1)
    stops = torch.full((len(below), 3), -1)
    for i, (row, own) in enumerate(zip(rows, below, strict=True)):
        path[i, : len(own)] = torch.tensor(own, dtype=torch.int64)
        stops[i, : len(texts[row].stop_ids)] = torch.tensor(sorted(texts[row].stop_ids), dtype=torch.int64)
    found = adjust(logits, torch.tensor(rows), path, stops)
    for i, (row, own) in enumerate(zip(rows, below, strict=True)):
        assert torch.equal(found[i], Adjustment(texts[row], [own])(logits[i : i + 1], 0)[0])


def test_a_path_is_read_from_the_slots_of_its_nodes() -> None:
    """Tree: root (token 5), 7 and 8 after it, 9 after 8; a new node with token 4 after 9, and the root itself."""
    node = torch.full((1, MOST_NODES, 1), 99)
    node[0, :4, 0] = torch.tensor([5, 7, 8, 9])
    taken = torch.zeros(VALID + 1, 2, dtype=torch.int64)
    taken[WHAT], taken[DEEP], taken[ROW] = torch.tensor([4, 5]), torch.tensor([3, 0]), 0
    length = torch.tensor([20, 20])
    tail = torch.full((2, MOST_NODES), 77)
    tail[0, :3] = 20 + torch.tensor([2, 3, 4])
    found = paths(node, taken, tail, length)
    assert found[0, :3].tolist() == [8, 9, 4]
    assert bool((found[0, 3:] == -1).all()) and bool((found[1] == -1).all())
