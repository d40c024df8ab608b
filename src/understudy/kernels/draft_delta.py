"""What a draft's nodes do in one layer of the gated delta rule (arXiv 2412.06464) between the products of its inputs and that of
its output, in one call: the short convolution, the rule, and the gated norm of what it gives.

The convolution and the rule are those of `convolution_cpu` and `recurrence_cpu`; between them the host would take longer than they
do."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from ..recurrent import FOLD, RecurrentState
from ..tree import Nodes
from . import convolution_cpu, recurrence_cpu, team
from .compiled import bits_of, compiled, float_of, machine_code
from .delta_form import DeltaForm
from .descriptor import NUMBER, ConvolutionRun, Descriptor, RecurrentRun, convolution_run, reader, recurrent_run, rooms
from .numbers import multiple, read, squares, write
from .recurrence import SPAN
from .softmax import silu_gate
from .team import float32_at, int64_at, take, uint16_at

# numbers of which silu is made at once
SIXTY_FOUR = 64
# added to the square of a key's length, as the stock modules do
SHORTEST = np.float32(1e-6)
# an argument beyond which softplus is its argument
STRAIGHT = np.float32(20)
carray: Any = numpy_support.carray


class DeltaRun(Descriptor):
    """Nodes that go through a layer of the gated delta rule; see `mix_delta`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("places", NUMBER),
        # addresses of int64 [nodes]; of tails int64 [nodes, beyond] (`tree.Nodes`)
        ("rows", NUMBER),
        ("slots", NUMBER),
        ("positions", NUMBER),
        ("prefix", NUMBER),
        ("tail", NUMBER),
        ("beyond", NUMBER),
        # address of what the products made [nodes, columns], and the bytes of one number of it
        ("made", NUMBER),
        ("columns", NUMBER),
        ("itemsize", NUMBER),
        # addresses of what a `DeltaLine` and a `DeltaForm` hold
        ("channels", NUMBER),
        ("gates", NUMBER),
        ("betas", NUMBER),
        ("decays", NUMBER),
        ("rates", NUMBER),
        ("shifts", NUMBER),
        ("norm", NUMBER),
        # the bits of a float32 that is added to the mean square
        ("epsilon", NUMBER),
        # address of the result [nodes, value heads * value size]
        ("out", NUMBER),
        # addresses of a `ConvolutionRun` and a `RecurrentRun`
        ("convolution", NUMBER),
        ("rule", NUMBER),
        # addresses of machine code: the convolution, what comes before the rule, its halves, and what comes after it
        ("convolve", NUMBER),
        ("ask", NUMBER),
        ("multiply", NUMBER),
        ("read", NUMBER),
        ("gate", NUMBER),
        # address of GOMP_parallel (0: there is none), and how many threads work
        ("parallel", NUMBER),
        ("threads", NUMBER),
    )


delta_run = reader(DeltaRun)


def mix_delta(made: Tensor, state: RecurrentState, nodes: Nodes, form: DeltaForm) -> Tensor:
    """What the rule gives `nodes`, after the gated norm: made [n, columns] -> [n, value heads * value size]. Records are put at
    their slots. The parents of nodes come before them."""
    shape, count = state.shape, len(made)
    rows, positions, prefix, tail = nodes.arrays
    inputs = state.inputs
    assert made.is_contiguous() and made.dtype == inputs.dtype and form.weight.is_contiguous()
    values = shape.value_heads * shape.value_size
    sizes = (
        8 * count * shape.taps, count * shape.channels * made.itemsize, 4 * shape.channels, 8 * count, 8 * count, 8 * count * SPAN,
        4 * count * shape.key_heads * 2 * shape.key_size, 4 * count * values, 4 * count * shape.value_heads, 4 * count * values,
        4 * count * shape.key_heads * 2 * SPAN,
    )  # fmt: skip
    kept, addresses = rooms(sizes)
    taps, convolved, zeros, bases, counts, paths, asked, given, beta, ruled, products = addresses
    convolution = ConvolutionRun(
        nodes=count, channels=shape.channels, taps=shape.taps, itemsize=made.itemsize, weight_itemsize=form.weight.itemsize,
        path=taps, inputs=inputs.data_ptr(), out=convolved, weights=form.weight.data_ptr(), bias=zeros,
    )  # fmt: skip
    rule = RecurrentRun(
        nodes=count, key_heads=shape.key_heads, value_heads=shape.value_heads, key_size=shape.key_size,
        value_size=shape.value_size, places=state.places, reads=2, rows=rows.ctypes.data, bases=bases, counts=counts, paths=paths,
        asked=asked, values=given, beta=beta, out=ruled, keys=state.keys.data_ptr(), updates=state.values.data_ptr(),
        decays=state.decays.data_ptr(), states=state.states.data_ptr(), products=products,
    )  # fmt: skip
    out = torch.empty((count, values), dtype=made.dtype)
    (multiply, reading), (ask, gate) = recurrence_cpu.entries(), entries()
    slots, line = nodes.slots.numpy(), [part.data_ptr() for part in form.line.parts]
    small = count * values * shape.key_size < recurrence_cpu.SMALL
    run = DeltaRun(
        nodes=count, places=state.places, rows=rows.ctypes.data, slots=slots.ctypes.data, positions=positions.ctypes.data,
        prefix=prefix.ctypes.data, tail=tail.ctypes.data, beyond=tail.shape[1], made=made.data_ptr(), columns=made.shape[1],
        itemsize=made.itemsize, channels=line[0], gates=line[1], betas=line[2], decays=line[3],
        rates=form.rates.data_ptr(), shifts=form.shifts.data_ptr(),
        norm=form.norm.weight.data_ptr(), epsilon=bits_of(form.norm.epsilon), out=out.data_ptr(),
        convolution=ctypes.addressof(convolution), rule=ctypes.addressof(rule), convolve=convolution_cpu.entry(),
        ask=ask, multiply=multiply, read=reading, gate=gate, parallel=team.parallel(), threads=1 if small else team.threads(),
    )  # fmt: skip
    through()(ctypes.addressof(run))
    del kept
    return out


@cache
def through() -> Callable[[int], None]:
    """What runs a `DeltaRun`, to be called with its address."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(machine_code(_through))


@cache
def entries() -> tuple[int, int]:
    """Addresses of machine code for what comes before the rule, and after it."""
    return machine_code(inspect.unwrap(_asked)), machine_code(inspect.unwrap(_gated))


def _through(argument: Any) -> None:
    """Record and convolve what the nodes were given, go through the rule, and norm and gate what it gives."""
    run = delta_run(argument)
    _recorded(run)
    _shared(run, run.convolve, run.convolution)
    _shared(run, run.ask, argument)
    _shared(run, run.multiply, run.rule)
    _shared(run, run.read, run.rule)
    _shared(run, run.gate, argument)


@compiled
def _shared(run: Any, work: int, argument: int) -> None:
    """Have all threads do `work`, whose run begins with its counter."""
    int64_at(argument)[0] = 0
    team.share(run, work, argument)


@compiled
def _slot(run: Any, node: int, position: int) -> int:
    """The slot of the token at `position` on the path of a node."""
    prefix = int64_at(run.prefix)[node]
    return position if position < prefix else int64_at(run.tail)[node * run.beyond + position - prefix]


@compiled
def _recorded(run: Any) -> None:
    """Put the inputs of the convolution at the slots of the nodes, and find which inputs and records each node looks at."""
    convolution, rule = convolution_run(run.convolution), recurrent_run(run.rule)
    channels, taps, item = convolution.channels, convolution.taps, run.itemsize
    wanted, rows = carray(int64_at(run.channels), channels), carray(int64_at(run.rows), run.nodes)
    path, paths = carray(int64_at(convolution.path), (run.nodes, taps)), carray(int64_at(rule.paths), (run.nodes, SPAN))
    bases, counts = carray(int64_at(rule.bases), run.nodes), carray(int64_at(rule.counts), run.nodes)
    carray(float32_at(convolution.bias), channels)[:] = np.float32(0)
    for node in range(run.nodes):
        here, position = int64_at(run.slots)[node] % run.places, int64_at(run.positions)[node]
        source = run.made + node * run.columns * item
        into = convolution.inputs + (rows[node] * run.places + here) * channels * item
        if item == 2:
            halves, given = carray(uint16_at(into), channels), carray(uint16_at(source), run.columns)
            for c in range(channels):
                halves[c] = given[wanted[c]]
        else:
            floats, numbers = carray(float32_at(into), channels), carray(float32_at(source), run.columns)
            for c in range(channels):
                floats[c] = numbers[wanted[c]]
        for tap in range(taps):
            at = position - taps + 1 + tap
            path[node, tap] = rows[node] * run.places + _slot(run, node, at) % run.places if at >= 0 else -1
        bases[node] = max(position // FOLD - 1, 0) * FOLD
        counts[node] = position - bases[node] + 1
        for i in range(counts[node]):
            paths[node, i] = _slot(run, node, bases[node] + i) % run.places


@compiled
def _asked(argument: Any) -> None:
    """From what was convolved: queries and keys of length one, values, and how much each head writes and keeps; node after node,
    until none is left."""
    run = delta_run(argument)
    convolution, rule = convolution_run(run.convolution), recurrent_run(run.rule)
    channels, size = convolution.channels, rule.key_size
    heads, half = rule.value_heads, rule.key_heads * size
    line, ones = np.zeros(multiple(channels, SIXTY_FOUR), np.float32), np.ones(SIXTY_FOUR, np.float32)
    asked = carray(float32_at(rule.asked), (run.nodes, rule.key_heads, 2, size))
    values = carray(float32_at(rule.values), (run.nodes, heads * rule.value_size))
    beta = carray(float32_at(rule.beta), (run.nodes, heads))
    rates, shifts = carray(float32_at(run.rates), heads), carray(float32_at(run.shifts), heads)
    one = np.empty(1, np.float32)
    while True:
        node = take(argument)
        if node >= run.nodes:
            break
        read(convolution.out + node * channels * run.itemsize, run.itemsize, line[:channels])
        for c in range(0, channels, SIXTY_FOUR):
            silu_gate(line[c:].ctypes.data, ones.ctypes.data)
        for head in range(rule.key_heads):
            unit(line[head * size : (head + 1) * size], asked[node, head, 0], np.float32(1) / np.sqrt(np.float32(size)))
            unit(line[half + head * size : half + (head + 1) * size], asked[node, head, 1], np.float32(1))
        values[node] = line[2 * half : channels]
        place = int64_at(run.rows)[node] * run.places + int64_at(run.slots)[node] % run.places
        keys = carray(float32_at(rule.keys + place * half * 4), (rule.key_heads, size))
        kept = carray(float32_at(rule.decays + place * heads * 4), heads)
        for head in range(rule.key_heads):
            keys[head] = asked[node, head, 1]
        source = run.made + node * run.columns * run.itemsize
        for head in range(heads):
            read(source + int64_at(run.betas)[head] * run.itemsize, run.itemsize, one)
            beta[node, head] = np.float32(1) / (np.float32(1) + np.exp(-one[0]))
            read(source + int64_at(run.decays)[head] * run.itemsize, run.itemsize, one)
            x = one[0] + shifts[head]
            kept[head] = np.exp(-rates[head] * (x if x > STRAIGHT else np.log1p(np.exp(x))))
    # numba drops what is not named any more
    line[0], ones[0] = np.float32(0), np.float32(0)


@compiled
def unit(x: Any, out: Any, length: Any) -> None:
    """`out` = x with this length."""
    factor = length / np.sqrt(squares(x) + SHORTEST)
    for c in range(x.shape[0]):
        out[c] = x[c] * factor


@compiled
def _gated(argument: Any) -> None:
    """Norm what each head gave, and multiply it by silu of its gate; node after node, until none is left."""
    run = delta_run(argument)
    rule = recurrent_run(run.rule)
    size, width = rule.value_size, multiple(rule.value_size, SIXTY_FOUR)
    weight, gates = carray(float32_at(run.norm), size), carray(int64_at(run.gates), rule.value_heads)
    gate, x = np.zeros(width, np.float32), np.zeros(width, np.float32)
    while True:
        node = take(argument)
        if node >= run.nodes:
            break
        source = run.made + node * run.columns * run.itemsize
        for head in range(rule.value_heads):
            place = node * rule.value_heads + head
            read(rule.out + place * size * 4, 4, x[:size])
            factor = np.float32(1) / np.sqrt(squares(x[:size]) / np.float32(size) + float_of(run.epsilon))
            for c in range(size):
                x[c] *= factor * weight[c]
            read(source + gates[head] * run.itemsize, run.itemsize, gate[:size])
            for c in range(0, width, SIXTY_FOUR):
                silu_gate(gate[c:].ctypes.data, x[c:].ctypes.data)
            write(gate[:size], run.out + place * size * run.itemsize, run.itemsize)
    # numba drops what is not named any more
    gate[0], x[0] = np.float32(0), np.float32(0)
