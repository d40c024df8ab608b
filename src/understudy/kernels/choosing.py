"""Arithmetic of a tree search that is asked for every node of a draft: chances of children, and where a text repeats itself.

Sums are made in the order in which they are written, in float64, with the exponential of the C library, which is Python's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


def chances(
    scores: Sequence[float], sharpness: NDArray[np.float64], weights: NDArray[np.float64], inside: float, steepest: float
) -> list[float]:
    """`inside` times the mean of the softmaxes of `scores` (best first) times each of `sharpness`, by `weights`, which add up to 1.

    No exponent is beyond -`steepest`."""
    given = np.array(scores, dtype=np.float64)
    found = np.empty_like(given)
    _chances(given, sharpness, weights, inside, steepest, found)
    kept: list[float] = found.tolist()
    return kept


def match(text: NDArray[np.int64], more: Sequence[int], longest: int, places: int) -> tuple[int, int]:
    """How many of the last tokens of `text` with `more` after it (at most `longest`) stand earlier in it too, and the index after
    that place: of equally long matches the latest, among the `places` latest of the last token. (0, 0): there is none."""
    size, end = _match(text, np.array(more, dtype=np.int64), longest, places)
    return int(size), int(end)


@compiled
def _chances(scores: Any, sharpness: Any, weights: Any, inside: float, steepest: float, out: Any) -> None:
    count = len(scores)
    own = np.empty(count)
    for i in range(count):
        out[i] = 0.0
    for k in range(len(sharpness)):
        total = 0.0
        for i in range(count):
            fall = sharpness[k] * (scores[0] - scores[i])
            own[i] = math.exp(-fall) if fall < steepest else math.exp(-steepest)
            total += own[i]
        for i in range(count):
            out[i] += weights[k] * (own[i] / total)
    for i in range(count):
        out[i] *= inside


@compiled
def _match(text: Any, more: Any, longest: int, places: int) -> Any:
    before, length = len(text), len(text) + len(more)
    best, end, seen = 0, 0, 0
    if length < 2:
        return best, end
    last = more[len(more) - 1] if len(more) > 0 else text[before - 1]
    for place in range(length - 2, -1, -1):
        if (text[place] if place < before else more[place - before]) != last:
            continue
        size = 1
        while size < longest and size <= place:
            i, j = place - size, length - 1 - size
            if (text[i] if i < before else more[i - before]) != (text[j] if j < before else more[j - before]):
                break
            size += 1
        if size > best:
            best, end = size, place + 1
        seen += 1
        if seen == places or best == longest:
            break
    return best, end
