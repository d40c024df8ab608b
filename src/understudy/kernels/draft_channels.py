"""What a draft's nodes do in a layer of the delta rule that forgets by channel (KDA, arXiv 2510.26692) before the rule and after
it: the short convolution with what makes queries, keys and values of it, and the gated norm of what the rule gives.

The rule between them is that of `channel_cpu`. Convolution and norm round at other places than the stock modules: drafts may."""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from ..recurrent import RecurrentState
from ..tree import Nodes
from . import team
from .compiled import bits_of, compiled, contracted, float_of, machine_code
from .descriptor import NUMBER, Descriptor, reader
from .draft_delta import unit
from .join_form import Norm
from .numbers import multiple, read, squares, write
from .softmax import logistic_gate, silu_gate
from .team import float32_at, int64_at, take

# numbers of which silu is made at once
SIXTY_FOUR = 64
# numbers that are made below which waking the other threads costs more than it saves
SMALL = 1 << 16
carray: Any = numpy_support.carray


@dataclass(frozen=True)
class ChannelForm:
    """A layer of the delta rule that forgets by channel, beside its products and its decays."""

    # of the convolution, float32 [taps, channels]: queries, keys and values
    weights: Tensor
    # column of the first head's share in what the products make
    betas: int
    # of each head's values
    norm: Norm

    def suits(self, state: RecurrentState, columns: int) -> bool:
        """Are its sizes those of `state`, and of lines of so many `columns`?"""
        shape = state.shape
        heads = shape.key_heads == shape.value_heads and shape.key_size == shape.value_size
        sizes = shape.channels == 3 * shape.value_heads * shape.value_size and self.norm.weight.numel() == shape.value_size
        inside = shape.channels <= columns and self.betas + shape.value_heads <= columns
        return heads and sizes and inside and tuple(self.weights.shape) == (shape.taps, shape.channels)


class ChannelAsk(Descriptor):
    """Nodes that bring queries, keys and values to the rule; see `ask`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("heads", NUMBER),
        ("size", NUMBER),
        ("taps", NUMBER),
        ("places", NUMBER),
        # addresses of int64 [nodes]; of tails int64 [nodes, beyond] (`tree.Nodes`)
        ("rows", NUMBER),
        ("positions", NUMBER),
        ("prefix", NUMBER),
        ("tail", NUMBER),
        ("beyond", NUMBER),
        # addresses of what the products made [nodes, columns], and of the layer's inputs; the bytes of one number of both
        ("made", NUMBER),
        ("columns", NUMBER),
        ("inputs", NUMBER),
        ("itemsize", NUMBER),
        ("weights", NUMBER),
        ("betas", NUMBER),
        # addresses of float32 [nodes, heads, size], and of shares [nodes, heads]
        ("query", NUMBER),
        ("key", NUMBER),
        ("value", NUMBER),
        ("beta", NUMBER),
    )


class ChannelGate(Descriptor):
    """What the rule gives nodes, and their gates; see `gate`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("heads", NUMBER),
        ("size", NUMBER),
        # addresses of float32 [nodes, heads, size], of gates [nodes, columns], and of the result [nodes, heads * size]
        ("given", NUMBER),
        ("gates", NUMBER),
        ("columns", NUMBER),
        ("out", NUMBER),
        # bytes of a gate and of a result
        ("itemsize", NUMBER),
        # address of the norm's weight, and the bits of a float32 that is added to the mean square
        ("norm", NUMBER),
        ("epsilon", NUMBER),
    )


channel_ask, channel_gate = map(reader, (ChannelAsk, ChannelGate))


def ask(made: Tensor, state: RecurrentState, nodes: Nodes, form: ChannelForm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values [n, heads, size] and shares [n, heads], float32, of what the products made [n, columns]. The inputs
    of the convolution are put at the nodes' slots."""
    shape, count, inputs = state.shape, len(made), state.inputs
    assert made.is_contiguous() and made.dtype == inputs.dtype and form.weights.is_contiguous()
    inputs[nodes.rows, nodes.slots % state.places] = made[:, : shape.channels]
    rows, positions, prefix, tail = nodes.arrays
    query, key, value = torch.empty(3, count, shape.value_heads, shape.value_size)
    beta = torch.empty(count, shape.value_heads)
    run = ChannelAsk(
        nodes=count, heads=shape.value_heads, size=shape.value_size, taps=shape.taps, places=state.places, rows=rows.ctypes.data,
        positions=positions.ctypes.data, prefix=prefix.ctypes.data, tail=tail.ctypes.data, beyond=tail.shape[1],
        made=made.data_ptr(), columns=made.shape[1], inputs=inputs.data_ptr(), itemsize=made.itemsize,
        weights=form.weights.data_ptr(), betas=form.betas, query=query.data_ptr(), key=key.data_ptr(), value=value.data_ptr(),
        beta=beta.data_ptr(),
    )  # fmt: skip
    team.run(entries()[0], run, small=count * shape.channels < SMALL)
    return query, key, value, beta


def gate(given: Tensor, gates: Tensor, norm: Norm) -> Tensor:
    """given [n, heads, size] float32, normed by heads and gated by the logistic function of gates [n, heads * size], which lie in
    lines -> [n, heads * size] of the gates' type."""
    count, heads, size = given.shape
    assert gates.stride(1) == 1 and given.is_contiguous() and gates.shape == (count, heads * size)
    out = torch.empty((count, heads * size), dtype=gates.dtype)
    run = ChannelGate(
        nodes=count, heads=heads, size=size, given=given.data_ptr(), gates=gates.data_ptr(), columns=gates.stride(0),
        out=out.data_ptr(), itemsize=gates.itemsize, norm=norm.weight.data_ptr(), epsilon=bits_of(norm.epsilon),
    )  # fmt: skip
    team.run(entries()[1], run, small=given.numel() < SMALL)
    return out


@cache
def entries() -> tuple[int, int]:
    """Addresses of machine code for what comes before the rule, and after it."""
    return machine_code(inspect.unwrap(_asked)), machine_code(inspect.unwrap(_gated))


@contracted
def _asked(argument: Any) -> None:
    """Make what one head of one node after another brings, until none is left."""
    run = channel_ask(argument)
    heads, size = run.heads, run.size
    wide = multiple(size, SIXTY_FOUR)
    line, x, ones = np.zeros(wide, np.float32), np.empty(size, np.float32), np.ones(SIXTY_FOUR, np.float32)
    one = np.empty(1, np.float32)
    while True:
        piece = take(argument)
        if piece >= run.nodes * heads:
            break
        node, head = piece // heads, piece % heads
        for part in range(3):
            _convolved(run, node, (part * heads + head) * size, line, x)
            for c in range(0, wide, SIXTY_FOUR):
                silu_gate(line[c:].ctypes.data, ones.ctypes.data)
            if part == 0:
                unit(line[:size], carray(float32_at(run.query + piece * size * 4), size), np.float32(1) / np.sqrt(np.float32(size)))
            elif part == 1:
                unit(line[:size], carray(float32_at(run.key + piece * size * 4), size), np.float32(1))
            else:
                write(line[:size], run.value + piece * size * 4, 4)
        read(run.made + (node * run.columns + run.betas + head) * run.itemsize, run.itemsize, one)
        float32_at(run.beta)[piece] = np.float32(1) / (np.float32(1) + np.exp(-one[0]))
    # numba drops what is not named any more
    line[0], ones[0] = np.float32(0), np.float32(0)


@contracted
def _convolved(run: Any, node: int, first: int, line: Any, x: Any) -> None:
    """line = the convolution along a node's path, of the channels from `first` on that `x` has room for."""
    count, channels = len(x), 3 * run.heads * run.size
    row, position, prefix = int64_at(run.rows)[node], int64_at(run.positions)[node], int64_at(run.prefix)[node]
    for c in range(count):
        line[c] = np.float32(0)
    for tap in range(run.taps):
        at = position - run.taps + 1 + tap
        if at < 0:
            continue
        slot = at if at < prefix else int64_at(run.tail)[node * run.beyond + at - prefix]
        read(run.inputs + ((row * run.places + slot % run.places) * channels + first) * run.itemsize, run.itemsize, x)
        weights = carray(float32_at(run.weights + (tap * channels + first) * 4), count)
        for c in range(count):
            line[c] += weights[c] * x[c]


@compiled
def _gated(argument: Any) -> None:
    """Norm what each head gave, and multiply it by its opened gate; one head of one node after another, until none is left."""
    run = channel_gate(argument)
    heads, size = run.heads, run.size
    weight, wide = carray(float32_at(run.norm), size), multiple(size, SIXTY_FOUR)
    gates, x = np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    while True:
        piece = take(argument)
        if piece >= run.nodes * heads:
            break
        node, head = piece // heads, piece % heads
        read(run.given + piece * size * 4, 4, x[:size])
        factor = np.float32(1) / np.sqrt(squares(x[:size]) / np.float32(size) + float_of(run.epsilon))
        for c in range(size):
            x[c] *= factor * weight[c]
        read(run.gates + (node * run.columns + head * size) * run.itemsize, run.itemsize, gates[:size])
        for c in range(0, wide, SIXTY_FOUR):
            logistic_gate(gates[c:].ctypes.data, x[c:].ctypes.data)
        write(gates[:size], run.out + piece * size * run.itemsize, run.itemsize)
    # numba drops what is not named any more
    gates[0], x[0] = np.float32(0), np.float32(0)
