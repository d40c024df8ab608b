"""Chains of guesses below every token of a text at once: training unrolls them with true tokens, measuring with a head's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..heads import DraftHead, Places


@dataclass(frozen=True)
class PieceBatch:
    """Pieces side by side, padded at their ends to the longest."""

    # [b, n] int64.
    tokens: Tensor
    # [b, n] bool: those that are to be guessed; padding is not.
    counted: Tensor
    # [b, n, taps, hidden size]: the target's hidden states that the head reads.
    hidden: Tensor
    # [b, n, hidden size]: what the target's output head was given.
    features: Tensor
    # [b, n] int64: the target's first choice after each token; None: not known.
    choices: Tensor | None = None


@dataclass(frozen=True)
class Guess:
    """What a head has at one depth, for all roots of a batch. Root j is token j + 1 of a piece. Its node at depth d lies at token
    j + 1 + d, so what is guessed there is token j + 2 + d."""

    depth: int
    # [b, n - 1, state size]
    states: Tensor


# Gives the tokens [b, n - 1] of nodes from the guess at their parents.
Choose = Callable[[Guess], Tensor]


def shifted(x: Tensor, by: int) -> Tensor:
    """[b, n - 1, ...]: in place j what is in place j + `by` of x [b, n, ...]; zeros past the end."""
    n = x.shape[1]
    moved = x.new_zeros(len(x), n - 1, *x.shape[2:])
    left = max(min(n - by, n - 1), 0)
    moved[:, :left] = x[:, by : by + left]
    return moved


def unrolled(head: DraftHead, embed: Callable[[Tensor], Tensor], batch: PieceBatch, depths: int, choose: Choose) -> Iterator[Guess]:
    """What `head` has at each of `depths` depths of a chain below every token of `batch` but the first.

    A node sees the true tokens up to its root, and the nodes of its own chain. `embed` gives the target's embeddings, of which a
    head that brings its own takes no notice."""
    from transformers import DynamicCache

    if head.embedding is not None:
        embed = partial(functional.embedding, weight=head.embedding)

    tokens = batch.tokens[:, 1:]
    roots = tokens.shape[1]
    cache = DynamicCache()
    positions = torch.arange(1, roots + 1, device=tokens.device).expand(len(tokens), roots)
    mask = torch.ones(roots, roots, dtype=torch.bool, device=tokens.device).tril()
    own = torch.eye(roots, dtype=torch.bool, device=tokens.device)
    states = head.begin(batch.hidden[:, :-1], embed(tokens), Places(positions, mask[None, None], cache))
    for depth in range(depths):
        guess = Guess(depth, states)
        yield guess
        if depth + 1 < depths:
            mask = torch.cat([mask, own], 1)
            places = Places(positions + depth + 1, mask[None, None], cache)
            states = head.follow(states, embed(choose(guess)), depth + 1, places)
