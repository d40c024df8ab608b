"""The best tokens of sampled rows on the processor: scores with Gumbel noise, after top-k, top-p and min-p, without sorting a
vocabulary and without two logarithms for each of its tokens.

The noise of a token exceeds x with a chance of less than exp(-x), so few tokens can still be among the best once some are known.
Which ones is told by a bound on whole numbers, and only theirs is worked out. Filters look for what is kept among the highest
scores. What a row gets depends on the row alone."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import compiled, word_of
from .noise_constants import MIX_FIRST, MIX_SECOND, TOKEN_STEP

# Highest scores that are looked at before all others; the first bound comes from them.
BEFORE = 16
# Tokens whose bounds are worked out together.
CHUNK = 1024
# How far below the highest score what top-p keeps is looked for first, in units of the score.
NEAR = 4.0
# Half a bit of a bound's float32 and more, in units of the score, at least and for each unit of a score's size.
MARGIN, MARGIN_EACH = np.float32(1e-3), np.float32(2e-6)


def likeliest(
    scores: Tensor, keys: Tensor, count: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The `count` best scores [n, count] float32 and their tokens [n, count] int64, best first; -inf where fewer are kept, at any
    tokens.

    scores: [n, vocabulary] float32 on the processor, logits over temperatures, none of them NaN or inf and some of each row finite.
    keys: [n] int64, which the noise of each row is a function of, as in `sampling.noise`."""
    rows, vocabulary = scores.shape
    scores = scores.contiguous()
    values = np.full((rows, count), -np.inf, np.float32)
    tokens = np.zeros((rows, count), np.int64)
    top_k = top_k if 0 < top_k < vocabulary else 0
    lowest = float(torch.log(torch.tensor(min_p))) if min_p > 0 else -math.inf
    # One row's at a time: exponentials by torch, which are several at once.
    likely = np.empty(vocabulary if top_p < 1 else 0, np.float32)
    for row, (own, key) in enumerate(zip(scores, keys.tolist(), strict=True)):
        if top_p < 1:
            torch.exp(own - own.max(), out=torch.from_numpy(likely))
        _row(own.numpy(), likely, key, top_k, np.float32(top_p), np.float32(lowest), values[row], tokens[row])
    return torch.from_numpy(values), torch.from_numpy(tokens)


@compiled
def _mixed(x: Any) -> Any:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_SECOND)
    return x ^ (x >> np.uint64(31))


@compiled
def _noisy(score: Any, base: Any, token: Any) -> Any:
    """The score of one token with its noise, in float32."""
    bits = _mixed(base + np.uint64(token) * np.uint64(TOKEN_STEP))
    uniform = float((bits >> np.uint64(11)) & np.uint64((1 << 52) - 1)) * 2.0**-52 + 2.0**-54
    return np.float32(score + np.float32(-math.log(-math.log(uniform))))


@compiled
def _insert(value: Any, token: Any, values: Any, tokens: Any) -> None:
    """Put a value among `values`, highest first, where it belongs behind all as high; the lowest drops out."""
    place = len(values)
    while place > 0 and values[place - 1] < value:
        place -= 1
    if place < len(values):
        for i in range(len(values) - 1, place, -1):
            values[i] = values[i - 1]
            tokens[i] = tokens[i - 1]
        values[place] = value
        tokens[place] = token


@compiled
def _highest(scores: Any, count: int) -> Any:
    """The `count` highest scores and their tokens, highest first, the lower token of equal ones first."""
    values = np.full(count, -np.inf, np.float32)
    tokens = np.zeros(count, np.int64)
    least = values[count - 1]
    for token in range(len(scores)):
        if scores[token] > least:
            _insert(scores[token], token, values, tokens)
            least = values[count - 1]
    return values, tokens


@compiled
def _row(scores: Any, likely: Any, key: int, top_k: int, top_p: Any, lowest: Any, values: Any, tokens: Any) -> None:
    """The best of one row go to `values` and `tokens`."""
    base = _mixed(np.uint64(key))
    highest, first = _highest(scores, max(min(BEFORE, len(scores)), top_k))
    floor = np.float32(max(highest[0] + lowest, -np.inf))
    if top_k > 0:
        floor = max(floor, highest[top_k - 1])
    if top_p < 1:
        for token in _nucleus(scores, likely, highest[top_k - 1] if top_k > 0 else np.float32(-np.inf), top_p):
            if scores[token] >= floor:
                _insert(_noisy(scores[token], base, token), token, values, tokens)
        return
    known = np.full(len(values), -np.inf, np.float32)
    spare = np.zeros(len(values), np.int64)
    for i in range(len(highest)):
        if highest[i] >= floor and highest[i] > -np.inf:
            _insert(_noisy(highest[i], base, first[i]), first[i], known, spare)
    _search(scores, base, floor, known[len(known) - 1], values, tokens)


@compiled
def _nucleus(scores: Any, likely: Any, least: Any, top_p: Any) -> Any:
    """The tokens that top-p keeps of those with scores from `least` on: the likeliest, until they have so much of the probability.

    likely: the exponential of each score beside the highest."""
    total = 0.0
    highest = np.float32(-np.inf)
    for token in range(len(scores)):
        if scores[token] >= least:
            total += likely[token]
            highest = max(highest, scores[token])
    wanted = float(top_p) * total
    near = NEAR
    while True:
        bound = max(least, np.float32(highest - near))
        held, mass = 0, 0.0
        for token in range(len(scores)):
            if scores[token] >= bound:
                held += 1
                mass += likely[token]
        # Sums in another order may differ in their last bits.
        if mass > wanted * (1 + 1e-9) or bound == least or near > 1e9:
            break
        near *= 2
    found = np.empty(held, np.int64)
    held = 0
    for token in range(len(scores)):
        if scores[token] >= bound:
            found[held] = token
            held += 1
    order = np.argsort(-scores[found], kind="mergesort")
    before, kept = 0.0, 0
    while kept < held and (kept == 0 or before < wanted):
        before += likely[found[order[kept]]]
        kept += 1
    return found[order[:kept]]


@compiled
def _search(scores: Any, base: Any, floor: Any, bound: Any, values: Any, tokens: Any) -> None:
    """The best of all scores from `floor` on go to `values` and `tokens`; as many as there are places reach `bound`."""
    flags = np.empty(CHUNK, np.uint8)
    last = len(values) - 1
    for start in range(0, len(scores), CHUNK):
        count = min(CHUNK, len(scores) - start)
        part = scores[start : start + count]
        bound = max(bound, values[last])
        if _hopeful(part, base, np.uint64(start), floor, bound, flags) == 0:
            continue
        for i in range(count):
            if flags[i] != 0:
                value = _noisy(part[i], base, start + i)
                if value >= bound:
                    _insert(value, start + i, values, tokens)


@compiled
def _hopeful(part: Any, base: Any, start: Any, floor: Any, bound: Any, flags: Any) -> int:
    """Flag the tokens of `part`, of which the first has number `start`, that may reach `bound` with their noise: at least those
    that do. Returns how many.

    A token of score s reaches b where -log(u) < exp(s - b), and 1 - u < -log(u). The exponential is 2**z, for which float32 has a
    bound of its own: the line between powers of two, which lies above it."""
    room = MARGIN + MARGIN_EACH * (abs(bound) + abs(floor if floor > -np.inf else np.float32(0.0)))
    found = 0
    for i in range(len(part)):
        bits = _mixed(base + (start + np.uint64(i)) * np.uint64(TOKEN_STEP))
        # 31 bits of 1 - u, rounded down
        beyond = np.int32(np.uint64(0x7FFFFFFF) - ((bits >> np.uint64(32)) & np.uint64(0x7FFFFFFF)))
        z = (part[i] - bound + room + MARGIN_EACH * abs(part[i])) * np.float32(1.4426951)
        z = min(max(z, np.float32(-40.0)), np.float32(1.0))
        line = np.int32((z + np.float32(127.0)) * np.float32(8388608.0))
        hope = (word_of(np.float32(beyond) * np.float32(2.0**-31)) <= line) & (part[i] >= floor) & (part[i] > -np.inf)
        flags[i] = hope
        found += hope
    return found
