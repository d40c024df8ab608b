"""Scores of tokens in a kernel, as `sampling.perturb` makes them, and their order. The noise is that of `sampling.noise`, a
counter-based hash of a place and a token."""

import triton
import triton.language as tl


@triton.jit
def heated(score, heat, key, token):
    """The scores float32 [places, tokens] of places with temperatures `heat` float64, whose noise is that of `key` int64; where the
    temperature is 0, the scores themselves."""
    if tl.max(heat, 0) > 0:
        hot = (heat > 0)[:, None]
        scaled = tl.div_rn(score, tl.where(heat > 0, heat, 1.0).to(tl.float32)[:, None])
        score = scaled + tl.where(hot, gumbel(key[:, None], token[None, :]), 0.0)
    return score


@triton.jit
def in_order(score, token):
    """A whole number for each score and its token: larger for a better score, and for the lower token of equal ones."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return (order << 32) + (0x7FFFFFFF - token)[None, :]


@triton.jit
def gumbel(key, token):
    """float32 Gumbel noise of each `token` int32 at the places that each `key` int64 stands for; the shapes of both together."""
    bits = _mix(_mix(key.to(tl.uint64)) + token.to(tl.uint64) * 0xD1B54A32D192ED03)
    uniform = ((bits >> 11) & 0xFFFFFFFFFFFFF).to(tl.float64) * 2.0**-52 + 2.0**-54
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
