"""The token that the exact model chooses after each node of a pass, whatever their number: the best score of a row, with the noise
of `sampling.noise` where it is sampled, of what top-k, top-p and min-p keep. Chunks of the vocabulary are looked through side by
side.

What a row gets depends on the row alone. Its scores are those that a draft's search sees of the same logits, to the bit."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .filters import least_keys
from .noise import heated, in_order

# tokens of the vocabulary that one program looks through
CHUNK = 2048
# the choice among logits that contain NaN or infinity, as `sampling.NO_TOKEN`
NO_TOKEN = -1
# what is told of each row, in this order: 64 bits each
TOLD = ("temperature", "key", "top_k", "top_p", "min_p")
# above any score, of what is no number; below any
MOST = 0x7FFFFFFFFFFFFFFF
BROKEN, NONE = tl.constexpr(MOST), tl.constexpr(-MOST)


def chosen_tokens(logits: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """[k] int64 on the host: the best token of each row of logits [k, vocabulary], the first of equal ones; NO_TOKEN where the best
    score is no finite number, or one of them is NaN.

    On the host too, for each row: temperature [k] float64, 0 for a greedy one, `key` [k] int64, of which `sampling.noise` is made,
    and what is kept: top_k [k] int64, top_p and min_p [k] float64."""
    count, vocabulary = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    chunk = min(CHUNK, triton.next_power_of_2(vocabulary))
    chunks = triton.cdiv(vocabulary, chunk)
    hot = draws["temperature"] > 0
    sampled = bool(hot.any())
    filtered = bool((hot & ((draws["top_k"] > 0) | (draws["top_p"] < 1) | (draws["min_p"] > 0))).any())
    found = torch.empty((count, chunks), dtype=torch.int64, device=logits.device)
    # one copy for all; greedy rows need none of it
    given = torch.stack([draws[name].view(torch.int64) for name in TOLD] + [torch.arange(count)]) if sampled else found
    given = given.to(logits.device)
    least = found
    if filtered:
        named = {name: numbers.view(draws[name].dtype) for name, numbers in zip(TOLD, given, strict=False)}
        least = least_keys(logits, given[-1], named)
    # the interpreter takes long over each program
    places = triton.next_power_of_2(count) if INTERPRETED else 1
    _best[(triton.cdiv(count, places), chunks)](
        logits, given, least, found, count, vocabulary, logits.stride(0), P=places, CHUNK=chunk, SAMPLED=sampled,
        FILTERED=filtered, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    best = found.max(1).values.cpu()
    usable = best.abs() < MOST
    return torch.where(usable, 0x7FFFFFFF - (best & 0xFFFFFFFF), NO_TOKEN)


@triton.jit(do_not_specialize=["count", "vocabulary", "stride"])
def _best(
    logits, given, least, found, count, vocabulary, stride,
    P: tl.constexpr, CHUNK: tl.constexpr, SAMPLED: tl.constexpr, FILTERED: tl.constexpr,
):  # fmt: skip
    """The best of one chunk of P rows: its score, in the order of whole numbers, and below it the token."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    chunk = tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    at = place.to(tl.int64)[:, None] * stride + token[None, :]
    there = place < count
    inside = there[:, None] & (token < vocabulary)[None, :]
    score = tl.load(logits + at, inside, other=-float("inf")).to(tl.float32)
    if SAMPLED:
        heat = tl.load(given + place, there, other=0).to(tl.float64, bitcast=True)
        key = tl.load(given + count + place, there, other=0)
        lowest = key
        if FILTERED:
            lowest = tl.load(least + place, there, other=0)
        score = heated(score, heat, key, token, lowest, FILTERED)
    known = (score > -float("inf")) & (score < float("inf"))
    order = tl.where(known, in_order(score, token), tl.where(score == -float("inf"), NONE, BROKEN))
    tl.store(found + place * tl.num_programs(1) + chunk, tl.max(order, 1), there)
