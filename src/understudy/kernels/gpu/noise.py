"""Scores of tokens in a kernel, as `sampling.perturb` makes them, and their order. The noise is that of `sampling.noise`, a
counter-based hash of a place and a token."""

import triton
import triton.language as tl

from ..noise_constants import MIX_FIRST, MIX_SECOND, TOKEN_STEP

FIRST, SECOND, STEP = tl.constexpr(MIX_FIRST), tl.constexpr(MIX_SECOND), tl.constexpr(TOKEN_STEP)


@triton.jit
def scaled(score, heat):
    """The scores float32 [places, tokens] of places at temperatures `heat` float64; where that is 0, the scores themselves."""
    return tl.div_rn(score, tl.where(heat > 0, heat, 1.0).to(tl.float32)[:, None])


@triton.jit
def heated(score, heat, key, token, least, FILTERED: tl.constexpr):
    """`scaled` scores with the noise of each `key` int64, where the temperature is not 0. If they are FILTERED, what lies below the
    keys `least` int64 [places], as `in_order` makes them, becomes minus infinity before."""
    if tl.max(heat, 0) > 0:
        hot = (heat > 0)[:, None]
        score = scaled(score, heat)
        if FILTERED:
            known = (score > -float("inf")) & (score < float("inf"))
            dropped = known & (in_order(score, token) < least[:, None])
            score = tl.where(dropped, -float("inf"), score)
        score = score + tl.where(hot, gumbel(key[:, None], token[None, :]), 0.0)
    return score


@triton.jit
def in_order(score, token):
    """A whole number for each score and its token: larger for a better score, and for the lower token of equal ones."""
    return (_order(score) << 32) + (0x7FFFFFFF - token)[None, :]


@triton.jit
def lowest_in_order(score):
    """The lowest number that `in_order` may give of each score."""
    return _order(score) << 32


@triton.jit
def _order(score):
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def score_of(key):
    """The score of which `in_order` made each `key`."""
    order = (key >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def gumbel(key, token):
    """float32 Gumbel noise of each `token` int32 at the places that each `key` int64 stands for; the shapes of both together."""
    bits = _mix(_mix(key.to(tl.uint64)) + token.to(tl.uint64) * STEP)
    uniform = ((bits >> 11) & 0xFFFFFFFFFFFFF).to(tl.float64) * 2.0**-52 + 2.0**-54
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> 30)) * FIRST
    x = (x ^ (x >> 27)) * SECOND
    return x ^ (x >> 31)
