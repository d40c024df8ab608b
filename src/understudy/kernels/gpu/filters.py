"""Top-k, top-p and min-p without sorting: of each row of logits, the lowest key that is kept.

A key is a score and its token in one whole number, as `noise.in_order` makes it, so tokens of equal scores are told apart as a
stable sort does: the lower one comes first. What is kept is all from one key on, and that key is found bit by bit, by counting
what lies at or above it, or adding up its probability. Probabilities are whole numbers, whose sum is the same in any order.

Two launches. `outline` takes the highest keys of each chunk of the vocabulary, side by side. `cut` finds the lowest key among
them; it looks at the whole row where more tokens of a chunk are kept than were taken. What a row gets depends on the row alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .noise import in_order, lowest_in_order, scaled, score_of

# Tokens of the vocabulary that one program of `outline` looks through, and how many neighbours of them are a grain: the grains of
# chunks take turns, since vocabularies begin with the frequent tokens.
CHUNK = 2048
GRAIN = tl.constexpr(32)
# Keys that are taken of each chunk.
LISTED = 32
# Tokens that `cut` looks at at a time.
BLOCK = 4096
# Below any key, and what is kept where nothing is dropped.
LOWEST = -0x8000000000000000
NONE, ALL = tl.constexpr(LOWEST + 1), tl.constexpr(LOWEST)
# The probability of the likeliest token. As many as the largest vocabulary has stay below 2**63.
UNIT = tl.constexpr(2.0**40)


def least_keys(logits: Tensor, which: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """[k] int64: of each row of logits [k, vocabulary], the lowest key that `sampling.keep_likely` keeps of scores at its
    temperature. Keys of rows that are greedy, or drop nothing, are all at or above it. At the edge of top-p sums are rounded
    otherwise.

    which: [k] int64, which of `params` are those of each row: temperature, top_p, min_p float64 and top_k int64. All lie on a
    device, and the host waits for none."""
    count, vocabulary = logits.shape
    chunk = min(CHUNK, max(triton.next_power_of_2(vocabulary), GRAIN.value))
    chunks = triton.cdiv(vocabulary, chunk)
    size = chunks * LISTED
    arrays: dict[str, Any] = {
        "logits": logits, "which": which, **{name: params[name] for name in ("temperature", "top_k", "top_p", "min_p")},
        "lists": torch.empty((count, size), dtype=torch.int64, device=logits.device),
        "sums": torch.empty((count, chunks), dtype=torch.float32, device=logits.device),
        "least": torch.empty(count, dtype=torch.int64, device=logits.device),
        "count": count, "vocabulary": vocabulary, "stride": logits.stride(0),
    }  # fmt: skip
    # The interpreter takes long over each program.
    places = triton.next_power_of_2(count) if INTERPRETED else 1
    rows = triton.cdiv(count, places)
    sizes = {
        "P": places, "CHUNK": chunk, "LISTED": LISTED, "CHUNKS": chunks, "WIDE": triton.next_power_of_2(chunks),
        "SIZE": triton.next_power_of_2(size), "BLOCK": min(BLOCK, triton.next_power_of_2(vocabulary)),
        "TOKEN": max((vocabulary - 1).bit_length(), 1),
    }  # fmt: skip
    for kernel, grid, warps in ((outline, (rows, chunks), 4), (cut, (rows,), 8)):
        named = {name: {**arrays, **sizes}[name] for name in kernel.arg_names}
        kernel[grid](**named, num_warps=warps, enable_fp_fusion=False)
    least: Tensor = arrays["least"]
    return least


@triton.jit
def _drops(which, temperature, top_k, top_p, min_p, place, there):
    """Of each row top_k, top_p and min_p, its temperature, and whether anything is dropped there."""
    row = tl.load(which + place, there, other=0)
    heat = tl.load(temperature + row, there, other=0.0)
    most = tl.load(top_k + row, there, other=0)
    share = tl.load(top_p + row, there, other=1.0).to(tl.float32).to(tl.float64)
    ratio = tl.load(min_p + row, there, other=0.0).to(tl.float32).to(tl.float64)
    return most, share, ratio, heat, (heat > 0) & ((most > 0) | (share < 1) | (ratio > 0))


@triton.jit
def _keys(logits, heat, place, there, token, vocabulary, stride):
    """The keys [P, n] of these tokens, NONE of what is no number."""
    at = place.to(tl.int64)[:, None] * stride + token[None, :]
    inside = there[:, None] & (token < vocabulary)[None, :]
    score = scaled(tl.load(logits + at, inside, other=-float("inf")).to(tl.float32), heat)
    known = (score > -float("inf")) & (score < float("inf"))
    return tl.where(known, in_order(score, token), NONE)


@triton.jit(do_not_specialize=["count", "vocabulary", "stride"])
def outline(
    logits, which, temperature, top_k, top_p, min_p, lists, sums, count, vocabulary, stride,
    P: tl.constexpr, CHUNK: tl.constexpr, LISTED: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The highest keys of one chunk, and the sum of the probabilities of all of it, where the likeliest of it has 1."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    there = place < count
    heat, drops = _drops(which, temperature, top_k, top_p, min_p, place, there)[3:]
    if tl.max(drops.to(tl.int32), 0) > 0:
        chunk = tl.program_id(1)
        lane = tl.arange(0, CHUNK)
        token = lane // GRAIN * (GRAIN * CHUNKS) + chunk * GRAIN + lane % GRAIN
        key = _keys(logits, heat, place, there, token, vocabulary, stride)
        highest = tl.max(key, 1)
        known = key > NONE
        top = score_of(highest)[:, None]
        behind = tl.where(known, score_of(key), 0.0) - tl.where(known, top, 0.0)
        total = tl.sum(tl.where(known, tl.exp(behind), 0.0), 1)
        tl.store(sums + place * CHUNKS + chunk, total, there)
        out = lists + (place * CHUNKS + chunk) * LISTED
        for i in range(LISTED):
            tl.store(out + i, highest, there)
            key = tl.where(key == highest[:, None], NONE, key)
            highest = tl.max(key, 1)


@triton.jit
def _likelihood(key, top):
    """Whole numbers as likely as the tokens of each `key` [P, n], the likeliest of which has the score `top` [P]; 0 of none."""
    known = key > NONE
    behind = tl.where(known, score_of(key), 0.0) - tl.where(known, top[:, None], 0.0)
    return tl.where(known, tl.exp(behind) * UNIT, 0.0).to(tl.int64)


@triton.jit
def _above(
    trial, key, worth, top, logits, heat, place, there, vocabulary, stride,
    WHOLE: tl.constexpr, MASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[P] What keys at or above `trial` [P] are worth: those listed, or those of the WHOLE row: each 1, or its MASS."""
    if WHOLE:
        total = trial * 0
        for start in range(0, vocabulary, BLOCK):
            key = _keys(logits, heat, place, there, start + tl.arange(0, BLOCK), vocabulary, stride)
            if MASS:
                worth = _likelihood(key, top)
            else:
                worth = (key > NONE).to(tl.int64)
            total += tl.sum(tl.where(key >= trial[:, None], worth, 0), 1)
        return total
    else:
        return tl.sum(tl.where(key >= trial[:, None], worth, 0), 1)


@triton.jit
def _largest(
    low, need, floor, key, worth, top, logits, heat, place, there, vocabulary, stride,
    WHOLE: tl.constexpr, MASS: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """[P] `low` with those of its BITS bits from FIRST on set which make it largest while keys at or above it, and `floor`, are
    worth `need` or more. The highest bit is a sign: where it is set, the number is lower."""
    for i in range(BITS):
        trial = low ^ ((low * 0 + 1) << (FIRST - i))
        found = _above(
            tl.maximum(trial, floor), key, worth, top, logits, heat, place, there, vocabulary, stride, WHOLE, MASS, BLOCK
        )
        low = tl.where(found >= need, trial, low)
    return low


@triton.jit
def _cut(
    most, share, total, key, top, logits, heat, place, there, vocabulary, stride,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr, TOKEN: tl.constexpr,
):  # fmt: skip
    """The lowest keys [P] that top-k and that top-p keep, ALL where they are off. Of equal scores top-k keeps all."""
    all_keys = most * 0 + ALL
    limited = (most > 0) & (most < vocabulary)
    kept = all_keys
    if tl.max(limited.to(tl.int32), 0) > 0:
        one = (key > NONE).to(tl.int64)
        kept = _largest(
            all_keys, most, all_keys, key, one, top, logits, heat, place, there, vocabulary, stride, WHOLE, False, BLOCK, 63, 32
        )
        kept = tl.where(limited, kept, all_keys)
    shared = share < 1
    nucleus = all_keys
    if tl.max(shared.to(tl.int32), 0) > 0:
        mass = _likelihood(key, top)
        rest = _above(kept, key, mass, top, logits, heat, place, there, vocabulary, stride, WHOLE, True, BLOCK)
        need = tl.ceil(share * tl.where(limited, rest, total).to(tl.float64)).to(tl.int64)
        nucleus = _largest(
            all_keys, need, kept, key, mass, top, logits, heat, place, there, vocabulary, stride, WHOLE, True, BLOCK, 63, 32
        )
        # of the 31 bits of a token, the first are the same for all of a vocabulary
        nucleus += (0x7FFFFFFF >> TOKEN) << TOKEN
        nucleus = _largest(
            nucleus, need, kept, key, mass, top, logits, heat, place, there, vocabulary, stride, WHOLE, True, BLOCK, TOKEN - 1,
            TOKEN,
        )  # fmt: skip
        nucleus = tl.where(shared, nucleus, all_keys)
    return kept, nucleus


@triton.jit(do_not_specialize=["count", "vocabulary", "stride"])
def cut(
    logits, which, temperature, top_k, top_p, min_p, lists, sums, least, count, vocabulary, stride,
    P: tl.constexpr, LISTED: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    TOKEN: tl.constexpr,
):  # fmt: skip
    """The lowest key of each row that top-k, top-p and min-p all keep."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    there = place < count
    most, share, ratio, heat, drops = _drops(which, temperature, top_k, top_p, min_p, place, there)
    found = most * 0 + ALL
    if tl.max(drops.to(tl.int32), 0) > 0:
        chunk = tl.arange(0, WIDE)[None, :]
        each = there[:, None] & (chunk < CHUNKS)
        first = lists + place[:, None] * (CHUNKS * LISTED) + chunk * LISTED
        tops = tl.load(first, each, other=NONE)
        # what is not listed lies below this
        bound = tl.max(tl.load(first + LISTED - 1, each, other=NONE), 1)
        top = score_of(tl.max(tops, 1))
        shares = tl.load(sums + place[:, None] * CHUNKS + chunk, each, other=0.0).to(tl.float64)
        total = tl.sum((shares * _likelihood(tops, top).to(tl.float64)).to(tl.int64), 1)
        lane = tl.arange(0, SIZE)[None, :]
        listed = there[:, None] & (lane < CHUNKS * LISTED)
        key = tl.load(lists + place[:, None] * (CHUNKS * LISTED) + lane, listed, other=NONE)
        kept, nucleus = _cut(
            most, share, total, key, top, logits, heat, place, there, vocabulary, stride, False, BLOCK, TOKEN
        )
        beyond = (bound > NONE) & (((most > 0) & (most < vocabulary) & (kept <= bound)) | ((share < 1) & (nucleus < bound)))
        if tl.max((drops & beyond).to(tl.int32), 0) > 0:
            whole_kept, whole_nucleus = _cut(
                most, share, total, key, top, logits, heat, place, there, vocabulary, stride, True, BLOCK, TOKEN
            )
            kept = tl.where(beyond, whole_kept, kept)
            nucleus = tl.where(beyond, whole_nucleus, nucleus)
        floor = top + tl.log(tl.where(ratio > 0, ratio, 1.0)).to(tl.float32)
        likely = tl.where(ratio > 0, lowest_in_order(floor), ALL)
        found = tl.where(drops, tl.maximum(tl.maximum(kept, nucleus), likely), ALL)
    tl.store(least + place, found, there)
