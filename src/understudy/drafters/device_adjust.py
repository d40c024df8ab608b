"""Biases and penalties in levels that a device runs: `adjust.Adjustment` as a function from tensors to tensors.

All shapes are fixed: tokens that are not there stand in a spare column after the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels.search_columns import DEEP, ROW, TOKEN, WHAT
from ..sequence import TokenSequence
from .growing_tree import MOST_NODES
from .packed_tensors import PackedTensors, Shapes


class DeviceAdjustment:
    """What the biases and penalties of a draft's sequences look at, and what they do.

    `land` and `make` give memory of so many bytes, on the host and on the device. A draft has at most `rows` sequences, of
    at most `capacity` tokens and `biases` biases each."""

    def __init__(
        self, rows: int, capacity: int, biases: int, land: Callable[[int], Tensor], make: Callable[[int], Tensor]
    ):
        self.biases = biases
        numbers = dict.fromkeys(("prompt", "missing"), (rows,))
        integers: Shapes = {**numbers, "text": (rows, capacity), "biased": (rows, biases)}
        penalties = ("repetition", "frequency", "presence")
        reals: Shapes = {**dict.fromkeys(penalties, (rows,)), "bias": (rows, biases)}
        self.here = PackedTensors.of(integers, reals, land)
        self.there = PackedTensors.of(integers, reals, make)

    def give(self, sequences: Sequence[TokenSequence]) -> None:
        """Hand over, in one copy, the texts and the parameters of `sequences`."""
        given = self.here
        given["text"].fill_(-1)
        given["biased"].fill_(-1)
        for place, sequence in enumerate(sequences):
            params = sequence.params
            given["prompt"][place] = sequence.prompt_length
            given["missing"][place] = params.min_tokens - sequence.produced
            given["repetition"][place] = params.repetition_penalty
            given["frequency"][place] = params.frequency_penalty
            given["presence"][place] = params.presence_penalty
            given["text"][place, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
            for i, (token, bias) in enumerate(params.biases):
                given["biased"][place, i] = token
                given["bias"][place, i] = bias
        self.there.memory.copy_(given.memory, non_blocking=True)

    def __call__(self, logits: Tensor, row: Tensor, path: Tensor, stops: Tensor) -> Tensor:
        """[k, vocab] float32: the logits after k nodes, adjusted.

        row: [k] their sequences' places in the draft; path: [k, MOST_NODES] the tokens between the end of the text and each node,
        -1 beyond it; stops: [k, s] stop tokens, -1 for none."""
        given = self.there
        scores = logits.float()
        blank = torch.nn.functional.pad(torch.zeros_like(scores), (0, 1))

        def column(tokens: Tensor) -> Tensor:
            return torch.where(tokens < 0, scores.shape[-1], tokens)

        def added(start: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
            return start.scatter_add(1, column(tokens), values.float().expand(tokens.shape))

        one = torch.ones_like(scores[:1, :1])
        scores = scores + added(blank, given["biased"][row], given["bias"][row])[:, :-1]
        text = given["text"][row]
        made = torch.where(torch.arange(text.shape[1], device=text.device) < given["prompt"][row][:, None], -1, text)
        counts = added(added(blank, made, one), path, one)
        seen = (added(counts, text, one) > 0)[:, :-1]
        counts = counts[:, :-1]
        penalty = given["repetition"][row].float()[:, None]
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        scores = scores - counts * given["frequency"][row].float()[:, None]
        scores = scores - (counts > 0) * given["presence"][row].float()[:, None]
        early = (path >= 0).sum(1) < given["missing"][row]
        never = torch.where(early, -torch.inf, 0.0)[:, None].float()
        return scores + blank.scatter(1, column(stops), never.expand(stops.shape))[:, :-1]


def paths(node: Tensor, taken: Tensor, tail: Tensor, length: Tensor) -> Tensor:
    """[w, MOST_NODES] the tokens between the root and each of the nodes `taken` of a level, their own the last; -1 beyond it.

    node: state["node"]; tail: [w, MOST_NODES] the slots of these tokens; length: [w] the slot of each root."""
    place = torch.arange(MOST_NODES, device=tail.device)
    index = (tail - length[:, None]).clamp(0, MOST_NODES - 1)
    tokens = node[:, :, TOKEN].index_select(0, taken[ROW]).gather(1, index)
    depth = taken[DEEP][:, None]
    return torch.where(place < depth - 1, tokens, torch.where(place < depth, taken[WHAT][:, None], -1))
