"""What a head is worth: tokens of a pass that drafts one chain, on texts that the target itself wrote after held-out beginnings.

Such a text is greedy, so each of its tokens is what the target would choose there, and a chain is accepted as far as it has the
text's tokens. All places of the texts are judged at once, without a pass of the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import UsageError
from ..heads import DraftHead
from .batches import Batches
from .chains import Guess, PieceBatch, shifted, unrolled
from .data import Pieces
from .target import FrozenTarget

# Tokens of the texts that are judged side by side.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Judged:
    """The worth of a head."""

    # Tokens that a pass gives, the target's own after the chain included.
    tokens_per_pass: float
    # By depth: the share of the chains that were right up to there, of those that were right up to the depth before.
    positions: tuple[float, ...]
    # Chains.
    judged: int
    # By text, in their order: the tokens that its chains had right, and its chains.
    by_text: tuple[tuple[int, int], ...]

    @property
    def error(self) -> float | None:
        """The standard error of `tokens_per_pass`, as `standard_error` has it."""
        return standard_error(self.by_text)


def standard_error(by_text: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]] = ()) -> float | None:
    """The standard error of the mean of counts (sum, number), one of each text: texts are independent of one another, and places of
    one are not. With `other` counts on the same texts: that of the difference of both means. None for fewer than two texts."""
    if len(by_text) < 2:
        return None
    whole = sum(number for _, number in by_text)
    sums = [one - two for (one, _), (two, _) in zip(by_text, other or [(0, 0)] * len(by_text), strict=True)]
    mean = sum(sums) / whole
    spread = sum((own - mean * number) ** 2 for own, (_, number) in zip(sums, by_text, strict=True))
    return math.sqrt(len(by_text) / (len(by_text) - 1) * spread) / whole


def written(texts: Sequence[Sequence[int]], prompts: Sequence[int]) -> Pieces:
    """Texts of tokens, of which the first `prompts[i]` of text i were given and the others are the target's."""
    lengths = [len(text) for text in texts]
    counted = [place >= prompt for length, prompt in zip(lengths, prompts, strict=True) for place in range(length)]
    flat = torch.tensor([token for text in texts for token in text], dtype=torch.int64)
    return Pieces(flat, torch.tensor(counted), (0, *accumulate(lengths)), (True,) * len(texts))


@torch.no_grad()
def judge(head: DraftHead, target: FrozenTarget, batches: Batches, levels: int) -> Judged:
    """The worth of chains of `levels` tokens that `head` drafts at every place of `batches` where so many follow.

    Raises UsageError where no text is that long."""
    levels = min(levels, head.config.heads or levels)
    # By text: its chains, and those that were right up to each depth.
    counts = torch.zeros(len(batches.pieces), 1 + levels, dtype=torch.int64)
    for group in batches.measured():
        batch = batches.read(group)
        whole = shifted(batch.counted, 2) & shifted(batch.counted, levels + 1)
        counts[group, 0] = whole.sum(1)
        for depth, agreed in enumerate(_agreed(head, target, batch, levels)):
            whole = whole & agreed
            counts[group, 1 + depth] = whole.sum(1)
    chains, *right = counts.sum(0).tolist()
    if not chains:
        raise UsageError(f"No text has {levels + 1} tokens after its beginning: take longer ones.")
    before = (chains, *right[:-1])
    shares = tuple(count / reached if reached else 0.0 for count, reached in zip(right, before, strict=True))
    by_text = tuple((sum(own), number) for number, *own in counts.tolist() if number)
    return Judged(1 + sum(right) / chains, shares, chains, by_text)


def _agreed(head: DraftHead, target: FrozenTarget, batch: PieceBatch, levels: int) -> list[Tensor]:
    """By depth: [b, n - 1] bool, whether the head's token there is the text's. Its chain goes on with its own tokens."""
    chosen: dict[int, Tensor] = {}

    def own(guess: Guess) -> Tensor:
        if guess.depth not in chosen:
            best = head.scores(guess.states, guess.depth, target.score).argmax(-1)
            chosen[guess.depth] = best if head.token_map is None else head.token_map[best]
        return chosen[guess.depth]

    guesses = unrolled(head, target.embed, batch, levels, own)
    return [own(guess) == shifted(batch.tokens, guess.depth + 2) for guess in guesses]
