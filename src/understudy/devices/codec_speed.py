"""Which codec is faster on this machine: fewer bytes to bring, or less arithmetic to decode them. Measured, not assumed.

A pass takes as long as the slower of two things that overlap: weights coming over the link, and the device using them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from .. import codecs
from ..codecs import Codec, Encoded, candidates
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.exact_product import BlockProduct
from ..kernels.pack import BLOCK, block
from ..quantizers import fitting
from . import Device

# Nodes of a usual pass.
ROWS = 32
# Outputs and columns of a weight that is measured with, how many there are, which no near cache holds together, and how often all
# of them are multiplied.
SAMPLE, COPIES, TURNS = (256, 4096), 8, 5
# Bytes per second, where there is nothing to measure yet.
UNKNOWN_LINK = 1e9
# What makes weights that are published in a form of their own, of usual ones, and how many columns of those have a scale, of 1.
_PUBLISHED: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8": lambda weight: weight.to(torch.float8_e4m3fn).to(weight.dtype),
    "int4": lambda weight: (weight * 3).round().clamp(-8, 7),
}
SHARED = 128


def fastest_codec(link: float, dtype: torch.dtype, quantizer: str, device: Device, form: str = "") -> str:
    """The name of the codec that takes the least time for each weight of `dtype`, published in `form`, on `device`.

    `link`: bytes per second of the link; 0: not known. Of equally fast codecs it is the smallest, which also takes the least
    room."""
    quantizer = "int4" if quantizer.startswith("mixed") else quantizer

    def seconds(codec: Codec) -> float:
        coming = codec.bits(dtype, quantizer) / 8 / (link or UNKNOWN_LINK)
        return max(coming, device.seconds_a_weight(codec, quantizer, dtype))

    able = [codec for codec in candidates(dtype, quantizer, form) if not device.refusal(codec)]
    return able[0].name if len(able) == 1 else min(able, key=seconds).name


@cache
def seconds_a_weight(name: str, quantizer: str, dtype: torch.dtype) -> float:
    """Seconds in which the processor multiplies ROWS rows by a weight of the type `dtype` stored by codec `name`, as a pass does:
    decoding included, and weights come from memory. Rows are float32 but where weights are bfloat16."""
    codec = codecs.codec(name)
    torch.manual_seed(0)
    weight = torch.randn(SAMPLE).to(dtype)
    # of numbers that are published so
    published = _PUBLISHED.get(codec.form)
    weight = published(weight) if published else weight
    factors = Factors(torch.ones(SAMPLE[0] // BLOCK, SAMPLE[1] // SHARED, 1), SHARED) if published else None
    substitute = fitting(quantizer, *SAMPLE).quantize(weight) if codec.needs_substitute else {}
    data = codec.encode(block(weight), substitute, factors)
    operands = []
    for _ in range(COPIES):
        own = {name: tensor.clone() for name, tensor in substitute.items()}
        operands.append(codec.operand(Encoded(data.clone(), SAMPLE[0] // BLOCK, SAMPLE[1], weight.dtype, own)))
    return min(product_turns(operands, ROWS, TURNS)) / weight.numel()


def product_turns(operands: Sequence[Operand], rows: int, count: int) -> list[float]:
    """Seconds in which one of `operands`, of one shape and type, multiplies `rows` rows: an average over all of them for each of
    `count` turns."""
    dtype = torch.bfloat16 if operands[0].dtype == torch.bfloat16 else torch.float32
    x = torch.randn(rows, operands[0].columns).to(dtype)
    out = torch.empty(rows, operands[0].blocks, BLOCK, dtype=dtype)
    products = [BlockProduct([(operand, 0)], rows=dtype) for operand in operands]
    return turns([partial(product, [x], out) for product in products], count)


def turns(actions: Sequence[Callable[[], object]], count: int) -> list[float]:
    """Seconds of one of `actions`: an average over all of them for each of `count` turns, after one that is not counted."""
    for action in actions:
        action()
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        for action in actions:
            action()
        taken.append((time.perf_counter() - start) / len(actions))
    return taken
