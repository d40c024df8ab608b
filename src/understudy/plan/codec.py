"""Which codec is faster on this machine: fewer bytes to bring, or no arithmetic to make them whole. Measured, not assumed.

A pass takes as long as the slower of two things that overlap: weights coming over the link, and processors using them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from ..codecs import codec
from ..devices.accelerator import Accelerator
from ..kernels.pack import block
from ..quantizers import fitting

ROWS = 32  # nodes of a usual pass
SAMPLE = 256, 4096  # outputs and columns of the weights that are measured with
UNKNOWN_LINK = 1e9  # bytes/s, where there is nothing to measure yet


def faster(link: float, dtype: torch.dtype, quantizer: str, device: Accelerator | None = None) -> str:
    """Of "delta" and "raw", whichever takes less time for each weight of `dtype` over a link of `link` bytes/s (0: not known).

    On equal terms "delta": it also takes half the room. A `device` with Triton decodes faster than any link brings bytes."""
    quantizer = "int4" if quantizer.startswith("mixed") else quantizer
    if not codec("delta").applies(dtype, quantizer):
        return "raw"
    if device is not None:
        return "delta" if device.triton else "raw"
    seconds = {}
    for name, using in zip(("raw", "delta"), speeds(quantizer), strict=True):
        coming = codec(name).bits(dtype, quantizer) / 8 / (link or UNKNOWN_LINK)
        seconds[name] = max(coming, using)
    return min(("delta", "raw"), key=lambda name: seconds[name])


@cache
def speeds(quantizer: str) -> tuple[float, float]:
    """Seconds a bfloat16 weight takes to be multiplied with ROWS rows, as it is and out of its residual."""
    torch.manual_seed(0)
    weight = torch.randn(SAMPLE).bfloat16()
    maker, made = fitting(quantizer, *SAMPLE), codec("delta")
    substitute, whole = maker.quantize(weight), block(weight)
    data, out = made.encode(whole, substitute), torch.empty_like(whole)
    x = torch.randn(ROWS, SAMPLE[1]).bfloat16()
    multiply = _best(lambda: x @ weight.T)
    decode = _best(lambda: made.decode(data, len(whole), SAMPLE[1], weight.dtype, substitute, out))
    return multiply / weight.numel(), (multiply + decode) / weight.numel()


def _best(action: Callable[[], object]) -> float:
    action()
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)
