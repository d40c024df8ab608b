"""Scales and zeros that lessen the error of a Linear's output on inputs like those of a text.

HQQ finds a scale and a zero for each row and group of columns from the weights alone. Here they go on from there: with
e the errors of a row's weights and E[x x'] ~ diag(own) + V V', the output's mean squared error is e' diag(own) e + |V' e|^2.
One group after another gets the scale and zero that make it least, given the errors of all other groups; then its codes are
those nearest to the exact weights again, so every weight stays in its code's bin. What does not help is not taken.
The 64 rows of a block are 64 problems side by side."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compiled import bits as words_of
from .compiled import contracted
from .fitting_rows import CODED, LINE, begin, decide, join, keep, solve, weigh_2, weigh_3, weigh_4, weigh_6
from .quantising import code_group
from .weighted import combine_rows

SWEEPS = 4


def fit(blocks: Tensor, scales: Tensor, own: Tensor, directions: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Packed codes uint8 [nb, K, 8 * bits] and (scale, zero) bfloat16 [groups, nb * 64, 2] of finite float32 blocks [nb, K, 64].

    `scales`: where to begin. `own` [K] and `directions` [K, r], float32: the second moments of the inputs."""
    count, columns, width = blocks.shape
    assert width == 64 and directions.shape[0] == columns and own.shape == (columns,), f"{tuple(directions.shape)}"
    codes = torch.empty((count, columns, 8 * bits), dtype=torch.uint8)
    found = scales.clone(memory_format=torch.contiguous_format)
    turned = directions.T.contiguous()
    words = words_of(found).view(np.uint32)[..., 0]
    rank, size = len(turned), columns // len(found)
    # held here: a kernel frees an array of its own once nothing but its address is used
    total, rest, trial, nearest = (np.empty((n, 64), np.float32) for n in (rank, rank + 1, CODED + rank, size))
    lines = Lines(*(array.ctypes.data for array in (total, rest, trial, nearest)))
    _fit(blocks.contiguous().numpy(), words, own.contiguous().numpy(), turned.numpy(), bits, SWEEPS, codes.numpy(), total, lines)
    return codes, found


class Group(NamedTuple):
    """A group of one block: addresses of its float32 numbers, how many there are, and what they weigh."""

    # [K, 64], and how many columns that are
    weights: int
    columns: int
    # [K]
    own: int
    # V' [r, K], the numbers from one of its lines to the next, and r
    directions: int
    apart: int
    rank: int
    # V' of the weights [r, 64], and of ones [r]
    exact: int
    ones: int
    # the sum of own inputs and of the squares of those
    weight: Any


class Lines(NamedTuple):
    """Addresses of float32 lines of 64 numbers that all groups of a block use."""

    # V' e over all groups [r, 64], and over all but one, with the error before that one changes [r + 1, 64]
    total: int
    rest: int
    # a state
    trial: int
    # codes [K, 64]
    codes: int


@contracted
def _fit(
    blocks: Any, words: Any, own: Any, directions: Any, bits: int, sweeps: int, codes: Any, total: Any, lines: Lines
) -> None:
    """`words` uint32 [groups, rows]: scale and zero; `directions`: V' [r, K]; `total` [r, 64] lies at `lines.total`."""
    groups, rank = words.shape[0], directions.shape[0]
    size = blocks.shape[1] // groups
    states, exact = np.empty((groups, CODED + rank, 64), np.float32), np.empty((groups, rank, 64), np.float32)
    ones, weights = np.zeros((groups, rank), np.float32), np.zeros(groups, np.float32)
    _sum_ones(own, directions, ones, weights)
    for b in range(blocks.shape[0]):
        total[:] = np.float32(0)
        # the first round says what there is, the others make it better, the last one keeps it
        for sweep in range(2 + sweeps):
            for g in range(groups):
                here, along = blocks[b, g * size :].ctypes.data, directions[:, g * size :].ctypes.data
                given = exact[g].ctypes.data, ones[g].ctypes.data, weights[g]
                group = Group(here, size, own[g * size :].ctypes.data, along, own.size, rank, *given)
                state, found = states[g].ctypes.data, words[g, b * 64 :].ctypes.data
                if sweep == 0:
                    _open(group, bits, found, state, lines)
                elif sweep <= sweeps:
                    _improve(group, bits, state, lines)
                else:
                    for v in range(0, LINE, 64):
                        keep(state + v, found + v)
                    code_group(here, found, size, bits, codes[b, g * size :].ctypes.data)


@contracted
def _sum_ones(own: Any, directions: Any, ones: Any, weights: Any) -> None:
    """V' of ones [groups, r], and what each group weighs [groups]."""
    groups, rank = ones.shape
    size = len(own) // groups
    for g in range(groups):
        for k in range(g * size, g * size + size):
            weights[g] += own[k]
            for r in range(rank):
                ones[g, r] += directions[r, k]
        for r in range(rank):
            weights[g] += ones[g, r] * ones[g, r]


@contracted
def _project(numbers: int, group: Group, out: int) -> None:
    """[r, 64] at `out` = V' of the numbers [K, 64]."""
    combine_rows(numbers, group.columns, group.directions, group.rank, group.apart, out, 64)


@contracted
def _open(group: Group, bits: int, words: int, state: int, lines: Lines) -> None:
    """The state of a group whose scales and zeros lie at `words`; its part of V' e is added."""
    _project(group.weights, group, group.exact)
    for v in range(0, LINE, 64):
        begin(words + v, state + v)
    _weigh(group, bits, state, lines)
    for v in range(0, LINE, 64):
        join(state + v, group.exact + v, group.ones, group.rank, lines.total + v)


@contracted
def _improve(group: Group, bits: int, state: int, lines: Lines) -> None:
    """A better scale and zero for each row of a group, where there is one."""
    for v in range(0, LINE, 64):
        exact, total, rest, trial = group.exact + v, lines.total + v, lines.rest + v, lines.trial + v
        solve(state + v, exact, group.ones, group.rank, total, rest, group.weight, trial)
    _weigh(group, bits, lines.trial, lines)
    for v in range(0, LINE, 64):
        exact, total, rest, trial = group.exact + v, lines.total + v, lines.rest + v, lines.trial + v
        decide(state + v, exact, group.ones, group.rank, total, rest, trial)


@contracted
def _weigh(group: Group, bits: int, state: int, lines: Lines) -> None:
    """The sums of a state and V' of its codes, with scales and zeros as they are there."""
    for v in range(0, LINE, 64):
        if bits == 4:
            weigh_4(group.weights + v, group.own, group.columns, state + v, lines.codes + v)
        elif bits == 3:
            weigh_3(group.weights + v, group.own, group.columns, state + v, lines.codes + v)
        elif bits == 6:
            weigh_6(group.weights + v, group.own, group.columns, state + v, lines.codes + v)
        else:
            weigh_2(group.weights + v, group.own, group.columns, state + v, lines.codes + v)
    _project(lines.codes, group, state + CODED * LINE)
