"""Logits to tokens. The noise is a function of (seed, position, token) alone, so a token does not depend on how many
drafts were tried before it: with a seed, drafted text equals plain text, and the draft searches with the very
noise the target uses.

token = argmax(filtered log p / T + Gumbel(seed, position, token)); exact in distribution (Gumbel-max; shared noise
after Daliri et al., arXiv 2408.07978)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adjust import Adjust
from .kernels.noise_constants import MIX_FIRST, MIX_SECOND, TOKEN_STEP
from .params import SamplingParams

_MASK = (1 << 63) - 1
# The choice among logits that contain NaN or infinity.
NO_TOKEN = -1
# Rows of logits that are scored at a time.
MOST_ROWS = 8
# The largest top-k for which the processor's kernel looks: it keeps so many tokens in order.
MOST_KEPT = 256
# Bytes for scores, noise and temporaries: with a large vocabulary, fewer rows are scored at a time.
ROOM = 8 << 20
# Bytes of scores, noise and temporaries for one token of the vocabulary in one row.
BYTES_A_TOKEN = 48

# How tokens are drawn from k rows of logits, by name, on the host: temperature, top_p and min_p [k] float64, top_k [k] int64, and
# the `key` [k] int64 of the noise of each.
Draws = Mapping[str, Tensor]
# Takes logits [k, vocabulary] and how to draw from each row; gives the tokens [k] int64 that `choose` would, in few steps. A row's
# token does not depend on the other rows.
Chooser = Callable[[Tensor, Draws], Tensor]


def gumbel(seed: int, positions: Tensor, vocabulary: int, tokens: Tensor | None = None) -> Tensor:
    """[n, vocabulary] float32 Gumbel noise for tokens at `positions` [n]; a counter-based hash, the same on any device. `tokens`
    [vocabulary] int64: which tokens these are, where they are not the first ones."""
    if positions.device.type != "cpu":
        # finding out which are the same would make the host wait
        return noise(positions.to(torch.int64) + offset(seed), vocabulary, tokens)
    # Siblings share a position and its noise.
    places, which = torch.unique(positions.to(torch.int64), return_inverse=True)
    return noise(places + offset(seed), vocabulary, tokens)[which]


def offset(seed: int) -> int:
    """The number that is added to a position to give the key of its noise."""
    return _signed(seed * 0x9E3779B97F4A7C15 + 0x1234567)


def derived_seed(seed: int, index: int) -> int:
    """The seed of choice number `index` of a request with `seed`: its own for number 0, an unrelated one for each other."""
    return (seed + index * 0x5851F42D4C957F2D) % 2**63


def noise(keys: Tensor, vocabulary: int, tokens: Tensor | None = None) -> Tensor:
    """[n, vocabulary] float32 Gumbel noise, a function of keys [n] int64 and of `tokens`, as in `gumbel`."""
    token = torch.arange(vocabulary, device=keys.device, dtype=torch.int64) if tokens is None else tokens
    bits = _mix(_mix(keys)[:, None] + token * _signed(TOKEN_STEP))
    uniform = ((bits >> 11) & ((1 << 52) - 1)).double() * 2.0**-52 + 2.0**-54
    return (-torch.log(-torch.log(uniform))).float()


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value > _MASK else value


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 with wrap-around; shifts are made logical by masking."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(MIX_FIRST)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(MIX_SECOND)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def perturb(logits: Tensor, params: SamplingParams, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
    """[n, vocab] float32 scores whose argmax is the token at each of `positions` [n]; greedy scores are the logits
    themselves. `tokens`: as in `gumbel`."""
    scores = logits.float()
    if params.temperature == 0:
        return scores
    scores = keep_likely(scores / params.temperature, params)
    return scores + gumbel(params.seed, positions, scores.shape[-1], tokens)


def keep_likely(scores: Tensor, params: SamplingParams) -> Tensor:
    """Top-k, top-p and min-p: what they drop becomes -inf. The likeliest token always stays."""
    if params.top_k and params.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(params.top_k, dim=-1).values[:, -1:], -torch.inf)
    if params.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        scores = scores.masked_fill(drop, -torch.inf)
    if params.min_p > 0:
        least = scores.max(-1, keepdim=True).values + torch.log(torch.tensor(params.min_p))
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores


def choose(
    logits: Tensor, params: SamplingParams, positions: Tensor, adjust: Adjust | None = None, chooser: Chooser | None = None
) -> Tensor:
    """[n] int64: the tokens the exact model puts at `positions` [n], one for each row of `logits` [n, vocab], which `adjust`
    changes before. `chooser`: what chooses; None: the operations of torch do.

    NO_TOKEN where the best score is no number: NaN counts as the best, so one NaN or infinity among the logits is enough."""
    if chooser is None:
        values, tokens = likeliest(logits, params, positions.to(logits.device), 1, adjust)
        return torch.where(values.isfinite(), tokens, NO_TOKEN)[:, 0]
    if adjust is None:
        return chooser(logits, draws(params, positions))
    return torch.cat([chooser(piece, draws(params, places)) for piece, places in _pieces(logits, positions, adjust)])


def draws(params: SamplingParams, positions: Tensor) -> Draws:
    """What a `Chooser` takes of tokens at `positions` [n]."""
    names = ("temperature", "top_p", "min_p")
    reals = {name: torch.full(positions.shape, float(getattr(params, name)), dtype=torch.float64) for name in names}
    return {**reals, "top_k": torch.full(positions.shape, params.top_k), "key": positions.to(torch.int64) + offset(params.seed)}


def joined(drawn: Sequence[Draws]) -> Draws:
    """Those of all rows, in order."""
    return {name: torch.cat([own[name] for own in drawn]) for name in drawn[0]}


def likeliest(
    logits: Tensor, params: SamplingParams, positions: Tensor, count: int, adjust: Adjust | None = None
) -> tuple[Tensor, Tensor]:
    """The `count` best scores [n, count] float32 of the tokens at `positions` [n], best first, and these tokens [n, count] int64.
    logits: [n, vocab], which `adjust` changes before.

    Where rows are sampled on the processor, a kernel finds them, unless a logit is no number."""
    count = min(count, logits.shape[-1])
    found = [_of_piece(piece, params, places, count) for piece, places in _pieces(logits, positions, adjust)]
    values, tokens = zip(*found, strict=True)
    return torch.cat(values), torch.cat(tokens)


def _of_piece(logits: Tensor, params: SamplingParams, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`likeliest` of at most `rows_at_once` rows."""
    if logits.device.type == "cpu" and params.temperature > 0 and params.top_k <= MOST_KEPT:
        scores = logits.float() / params.temperature
        if bool(scores.amax(-1).isfinite().all()):
            from .kernels.likeliest import likeliest as found  # numba: not for those who only read these names

            keys = positions.to(torch.int64) + offset(params.seed)
            return found(scores, keys, count, params.top_k, params.top_p, params.min_p)
    scores = _scored(logits, params, positions)
    if count > 1:
        values, tokens = scores.topk(count, dim=-1)
        return values, tokens
    tokens = scores.argmax(-1, keepdim=True)
    return scores.gather(-1, tokens), tokens


def _pieces(logits: Tensor, positions: Tensor, adjust: Adjust | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of `logits`, which `adjust` changes, and their positions, at most `rows_at_once` at a time, so that scores take
    no more memory than `choosing_bytes`."""
    most = rows_at_once(logits.shape[-1])
    for start in range(0, len(positions), most):
        piece = logits[start : start + most]
        yield piece if adjust is None else adjust(piece, start), positions[start : start + most]


def _scored(logits: Tensor, params: SamplingParams, positions: Tensor) -> Tensor:
    """`perturb` of at most `rows_at_once` rows. On a device where torch chooses, and sums rows otherwise by how many there are,
    filters always see that many."""
    there, most = len(logits), rows_at_once(logits.shape[-1])
    if params.filters and logits.device.type != "cpu" and there < most:
        rows = torch.arange(most, device=logits.device).clamp(max=there - 1)
        logits, positions = logits[rows], positions[rows]
    return perturb(logits, params, positions)[:there]


def rows_at_once(vocabulary: int) -> int:
    """Rows of logits that are scored at a time."""
    return max(1, min(MOST_ROWS, ROOM // (vocabulary * BYTES_A_TOKEN)))


def choosing_bytes(vocabulary: int) -> int:
    """Bytes that `choose` and `likeliest` take beside the logits."""
    return vocabulary * BYTES_A_TOKEN * rows_at_once(vocabulary)


@dataclass(frozen=True)
class BatchParams:
    """SamplingParams of n nodes as tensors [n], so that recorded work serves any request."""

    # float; 0: greedy
    temperature: Tensor
    # int64: `offset` of the seed
    offset: Tensor
    # int64; 0: off
    top_k: Tensor
    # float; 1: off
    top_p: Tensor
    # float; 0: off
    min_p: Tensor


def perturb_batch(logits: Tensor, batch: BatchParams, positions: Tensor, filtered: bool) -> Tensor:
    """`perturb` of nodes that each have params of their own; asks the device for nothing.

    `filtered`: at least one of them drops unlikely tokens."""
    scores = logits.float()
    sampled = batch.temperature > 0
    scores = scores / torch.where(sampled, batch.temperature, 1.0).float()[:, None]
    if filtered:
        scores = torch.where(sampled[:, None], _keep_likely_of_each(scores, batch), scores)
    added = noise(positions + batch.offset, scores.shape[-1])
    return scores + torch.where(sampled[:, None], added, 0.0)


def _keep_likely_of_each(scores: Tensor, batch: BatchParams) -> Tensor:
    """`keep_likely` for rows that each have params of their own; it sorts every row."""
    vocabulary = scores.shape[-1]
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    last = torch.where(batch.top_k > 0, batch.top_k, vocabulary).clamp(max=vocabulary) - 1
    least = ordered.gather(-1, last[:, None])
    ordered = ordered.masked_fill(ordered < least, -torch.inf)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    most = torch.where(batch.top_p < 1, batch.top_p, torch.inf).float()[:, None]
    drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= most)
    lowest = scores.max(-1, keepdim=True).values + torch.log(batch.min_p.float())[:, None]
    return scores.masked_fill((scores < least) | drop | (scores < lowest), -torch.inf)
