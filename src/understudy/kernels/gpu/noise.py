"""The noise of a sampled token in a kernel: that of `sampling.noise`, a counter-based hash of its place and the token."""

import triton
import triton.language as tl


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
