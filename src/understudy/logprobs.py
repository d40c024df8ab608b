"""Log-probabilities of tokens, of the target's logits as they are: no temperature, filter or penalty is in them.

They are the log-softmax in float32 of one row alone, so they depend on nothing but that row: drafted or not, in any batch, they
are the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a text, and how likely the target finds it and others at its place. Natural logarithms."""

    token: int
    logprob: float
    # The likeliest tokens at this place and theirs, best first; of equal ones the lower id first.
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, logits: Tensor, token: int, count: int) -> TokenLogprob:
        """Of `token`, and of the `count` likeliest ones, after the node with `logits` [vocab]. NaN where a logit is NaN or inf."""
        found = torch.log_softmax(logits.float()[None], -1)[0]
        count = min(count, len(found))
        if not count:
            return cls(token, float(found[token]))
        # Which of several equal tokens topk takes is not said, so all of them are looked at.
        ids = (found >= found.topk(count).values[-1]).nonzero()[:, 0]
        values, order = found[ids].sort(descending=True, stable=True)
        top = zip(ids[order[:count]].tolist(), values[:count].tolist(), strict=True)
        return cls(token, float(found[token]), tuple(top))
