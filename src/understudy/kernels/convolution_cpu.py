"""The processor's short convolution along the path of each node (`recurrence.py`): threads take channels, and every sum runs over
the taps in the order of positions, in float32."""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from ..recurrent import RecurrentState
from ..tree import Nodes
from . import team
from .compiled import contracted, float_of, machine_code, word_of
from .descriptor import ConvolutionRun, convolution_run
from .team import float32_at, int64_at, take, uint16_at

# channels that a thread takes at once
CHANNELS = 256
# products below which waking the other threads costs more than it saves
SMALL = 1 << 18
HELD = (torch.bfloat16, torch.float32)
carray: Any = numpy_support.carray


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
    """Convolution of x [n, channels] with weight [channels, taps] along the path of each node, whose last tap is the node itself.

    Records x at the slots of `nodes`; returns [n, channels] of x's dtype, rounded once. Before a text there are zeros."""
    inputs = state.inputs
    count, channels = x.shape
    inputs[nodes.rows, nodes.slots % state.places] = x.to(inputs.dtype)
    weight = (weight if weight.dtype in HELD else weight.float()).contiguous()
    start = torch.zeros(channels) if bias is None else bias.float().contiguous()
    out = torch.empty(count, channels, dtype=inputs.dtype)
    rows, positions, prefix, tail = (t.numpy() for t in (nodes.rows, nodes.positions, nodes.prefix, nodes.tail))
    path = np.empty((count, weight.shape[1]), np.int64)
    _paths(rows, positions, prefix, tail, state.places, path)
    run = ConvolutionRun(
        nodes=count,
        channels=channels,
        taps=weight.shape[1],
        itemsize=inputs.dtype.itemsize,
        weight_itemsize=weight.dtype.itemsize,
        path=path.ctypes.data,
        inputs=inputs.data_ptr(),
        out=out.data_ptr(),
        weights=weight.data_ptr(),
        bias=start.data_ptr(),
    )
    team.run(entry(), run, small=x.numel() * weight.shape[1] < SMALL)
    return out.to(x.dtype)


@cache
def entry() -> int:
    return machine_code(inspect.unwrap(_convolve))


@contracted
def _paths(rows: Any, positions: Any, prefix: Any, tail: Any, places: int, path: Any) -> None:
    """Fill path [n, taps] with which of all inputs [rows * places] each tap takes; -1 before the start of the text."""
    taps = path.shape[1]
    for node in range(len(rows)):
        for tap in range(taps):
            position = positions[node] - taps + 1 + tap
            slot = position if position < prefix[node] else tail[node, position - prefix[node]]
            path[node, tap] = rows[node] * places + slot % places if position >= 0 else -1


@contracted
def _convolve(argument: Any) -> None:
    """Convolve CHANNELS channels of all nodes, until none are left."""
    run = convolution_run(argument)
    weights, sums = np.empty((run.taps, CHANNELS), np.float32), np.empty(CHANNELS, np.float32)
    while True:
        first = take(argument) * CHANNELS
        if first >= run.channels:
            break
        count = min(CHANNELS, run.channels - first)
        for c in range(count):
            for tap in range(run.taps):
                weights[tap, c] = _number(run.weights, (first + c) * run.taps + tap, run.weight_itemsize)
        for node in range(run.nodes):
            _convolve_one(run, node, first, weights, sums[:count])


@contracted
def _number(address: int, index: int, itemsize: int) -> Any:
    """The number at `index` of bfloat16 or float32 ones."""
    if itemsize == 2:
        return float_of(np.int64(uint16_at(address)[index]) << 16)
    return float32_at(address)[index]


@contracted
def _convolve_one(run: Any, node: int, first: int, weights: Any, sums: Any) -> None:
    """The results of one node, of the channels from `first` on that `sums` has room for."""
    count = len(sums)
    bias, path = carray(float32_at(run.bias + first * 4), count), carray(int64_at(run.path + node * run.taps * 8), run.taps)
    for c in range(count):
        sums[c] = bias[c]
    for tap in range(run.taps):
        if path[tap] < 0:
            continue
        place = run.inputs + (path[tap] * run.channels + first) * run.itemsize
        if run.itemsize == 2:
            halves = carray(uint16_at(place), count)
            for c in range(count):
                sums[c] += weights[tap, c] * float_of(np.int64(halves[c]) << 16)
        else:
            floats = carray(float32_at(place), count)
            for c in range(count):
                sums[c] += weights[tap, c] * floats[c]
    out = run.out + (node * run.channels + first) * run.itemsize
    if run.itemsize == 2:
        rounded = carray(uint16_at(out), count)
        for c in range(count):
            word = word_of(sums[c])
            rounded[c] = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    else:
        carray(float32_at(out), count)[:] = sums
