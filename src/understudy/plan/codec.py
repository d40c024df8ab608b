"""Which codec is faster on this machine: fewer bytes to bring, or less arithmetic to decode them. Measured, not assumed.

A pass takes as long as the slower of two things that overlap: weights coming over the link, and the device using them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch

from .. import codecs
from ..codecs import Codec, candidates
from ..kernels.pack import block
from ..quantizers import fitting

if TYPE_CHECKING:
    from ..devices import Device

ROWS = 32  # nodes of a usual pass
SAMPLE = 256, 4096  # outputs and columns of the weights that are measured with
UNKNOWN_LINK = 1e9  # bytes/s, where there is nothing to measure yet


def faster(link: float, dtype: torch.dtype, quantizer: str, device: Device) -> str:
    """The codec that takes the least time for each weight of `dtype` on `device`, over a link of `link` bytes/s (0: not known).

    Of equally fast ones it is the smallest, which also takes the least room."""
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
    data, out = codec.encode(whole, substitute), torch.empty_like(whole)
    x = torch.randn(ROWS, SAMPLE[1]).bfloat16()
    seconds = _best(lambda: x @ weight.T)
    if not codec.in_place:
        seconds += _best(lambda: codec.decode(data, len(whole), SAMPLE[1], weight.dtype, substitute, out))
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
