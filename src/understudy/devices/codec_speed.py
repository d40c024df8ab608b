"""Which codec is faster on this machine: fewer bytes to bring, or less arithmetic to decode them. Measured, not assumed.

A pass takes as long as the slower of two things that overlap: weights coming over the link, and the device using them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from .. import codecs
from ..codecs import Codec, Encoded, candidates
from ..kernels.pack import block
from ..quantizers import fitting
from . import Device

# Nodes of a usual pass.
ROWS = 32
# Outputs and columns of the weights that are measured with.
SAMPLE = 256, 4096
# Bytes per second, where there is nothing to measure yet.
UNKNOWN_LINK = 1e9


def fastest_codec(link: float, dtype: torch.dtype, quantizer: str, device: Device) -> str:
    """The name of the codec that takes the least time for each weight of `dtype` on `device`.

    `link`: bytes per second of the link; 0: not known. Of equally fast codecs it is the smallest, which also takes the least
    room."""
    quantizer = "int4" if quantizer.startswith("mixed") else quantizer

    def seconds(codec: Codec) -> float:
        coming = codec.bits(dtype, quantizer) / 8 / (link or UNKNOWN_LINK)
        return max(coming, device.seconds_a_weight(codec, quantizer))

    able = [codec for codec in candidates(dtype, quantizer) if not device.refusal(codec)]
    return able[0].name if len(able) == 1 else min(able, key=seconds).name


@cache
def seconds_a_weight(name: str, quantizer: str) -> float:
    """Seconds in which the processor decodes a bfloat16 weight stored by codec `name` and multiplies it with ROWS rows."""
    codec = codecs.codec(name)
    torch.manual_seed(0)
    weight = torch.randn(SAMPLE).bfloat16()
    whole = block(weight)
    substitute = fitting(quantizer, *SAMPLE).quantize(weight) if codec.needs_substitute else {}
    data = codec.encode(whole, substitute)
    out = torch.empty_like(whole)
    x = torch.randn(ROWS, SAMPLE[1]).bfloat16()
    seconds = _best(lambda: x @ weight.T)
    if not codec.in_place:
        part = Encoded(data, len(whole), SAMPLE[1], weight.dtype, substitute)
        seconds += _best(lambda: codec.decode(part, out))
    return seconds / weight.numel()


def _best(action: Callable[[], object]) -> float:
    """Seconds of the fastest of five runs."""
    action()
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)
