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
from .compiled import contracted, float_of, word_of
from .hqq import bfloat16, nearest_code
from .pack import pack_run
from .weighted import add_rows

SWEEPS = 2
# rows of `sums`, each of 64: over a group, weighted by `own`, of q, q * q, q * w and w, and of the squared errors
Q, QQ, QW, W, ERROR = range(5)
# rows of `fit`, each of 64
SCALE, INVERSE, ZERO = range(3)


def fit(blocks: Tensor, scales: Tensor, own: Tensor, directions: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Packed codes uint8 [nb, K, 8 * bits] and (scale, zero) bfloat16 [groups, nb * 64, 2] of float32 blocks [nb, K, 64].

    `scales`: where to begin. `own` [K] and `directions` [K, r], float32: the second moments of the inputs."""
    count, columns, width = blocks.shape
    assert width == 64 and directions.shape[0] == columns and own.shape == (columns,), f"{tuple(directions.shape)}"
    codes = torch.empty((count, columns, 8 * bits), dtype=torch.uint8)
    found = scales.clone()
    turned = directions.T.contiguous()
    _fit(blocks.numpy(), words_of(found), own.numpy(), turned.numpy(), bits, SWEEPS, codes.numpy())
    return codes, found


class Group(NamedTuple):
    """The weights of one group of one block, and what they are multiplied with."""

    # [K, 64]
    weights: Any
    # [K]
    own: Any
    # V' [r, K], and the places of its columns: 0 to K - 1
    directions: Any
    places: Any
    # V' of the weights [r, 64], and of ones [r]
    exact: Any
    ones: Any
    # room for codes [K, 64]
    codes: Any


class Fitted(NamedTuple):
    """What a group has now, or would have: SCALE, INVERSE and ZERO of each row, `sums`, and V' of its codes [r, 64]."""

    fit: Any
    sums: Any
    coded: Any


@contracted
def _fit(blocks: Any, scales: Any, own: Any, directions: Any, bits: int, sweeps: int, codes: Any) -> None:
    """`directions`: V' [r, K]."""
    count, columns, _ = blocks.shape
    groups, rank = scales.shape[0], directions.shape[0]
    size = columns // groups
    centre = np.float32(1 << bits - 1)
    weights = np.empty((columns, 64), np.float32)
    fits, sums = np.empty((groups, 3, 64), np.float32), np.empty((groups, 5, 64), np.float32)
    coded, exact = np.empty((groups, rank, 64), np.float32), np.empty((groups, rank, 64), np.float32)
    ones = np.empty((groups, rank), np.float32)
    room, places = np.empty((size, 64), np.float32), np.arange(size)
    trial = Fitted(np.empty((3, 64), np.float32), np.empty((5, 64), np.float32), np.empty((rank, 64), np.float32))
    # V' e over all groups
    total = np.empty((rank, 64), np.float32)
    for b in range(count):
        total[:] = np.float32(0)
        # the first round says what there is, the others make it better
        for sweep in range(1 + sweeps):
            for g in range(groups):
                part = slice(g * size, (g + 1) * size)
                group = Group(weights[part], own[part], directions[:, part], places, exact[g], ones[g], room)
                fitted = Fitted(fits[g], sums[g], coded[g])
                if sweep == 0:
                    _open(blocks[b, part], scales[g, b * 64 : b * 64 + 64], group, fitted.fit)
                    _weigh(group, centre, fitted)
                    _add(total, group, fitted, np.float32(1))
                else:
                    _improve(group, centre, fitted, trial, total)
        _store(weights, fits, centre, bits, codes[b], scales[:, b * 64 : b * 64 + 64])


@contracted
def _open(block: Any, scales: Any, group: Group, fit: Any) -> None:
    """Copy a group's weights (what is not finite counts as 0), and where scales and zeros begin; find V' of weights and ones."""
    for k in range(len(group.own)):
        for j in range(64):
            w = block[k, j]
            group.weights[k, j] = w if w - w == np.float32(0) else np.float32(0)
    for j in range(64):
        _set(fit, j, float_of(np.int64(scales[j, 0]) << 16), float_of(np.int64(scales[j, 1]) << 16))
    _project(group.weights, group, group.exact)
    for r in range(len(group.ones)):
        group.ones[r] = np.float32(0)
        for k in range(len(group.own)):
            group.ones[r] += group.directions[r, k]


@contracted
def _set(fit: Any, j: int, scale: Any, zero: Any) -> None:
    fit[SCALE, j] = scale
    fit[INVERSE, j] = np.float32(1) / scale if scale > np.float32(1e-36) else np.float32(0)
    fit[ZERO, j] = zero


@contracted
def _project(numbers: Any, group: Group, out: Any) -> None:
    """out [r, 64] = V' of `numbers` [K, 64]."""
    out[:] = np.float32(0)
    rank, columns = group.directions.shape
    rows, places, directions = numbers.ctypes.data, group.places.ctypes.data, group.directions.ctypes.data
    add_rows(rows, places, columns, 256, directions, rank, group.directions.strides[0] // 4, out.ctypes.data, 64)


@contracted
def _weigh(group: Group, centre: Any, fitted: Fitted) -> None:
    """Find V' of a group's codes and its `sums`, with scales and zeros as they are in `fitted`."""
    fit, sums = fitted.fit, fitted.sums
    sums[:] = np.float32(0)
    for k in range(len(group.own)):
        d = group.own[k]
        for j in range(64):
            w = group.weights[k, j]
            q = nearest_code(w, fit[INVERSE, j], fit[ZERO, j], centre)
            group.codes[k, j] = q
            e = q * fit[SCALE, j] + fit[ZERO, j] - w
            weighted = d * q
            sums[Q, j] += weighted
            sums[QQ, j] += weighted * q
            sums[QW, j] += weighted * w
            sums[W, j] += d * w
            sums[ERROR, j] += d * e * e
    _project(group.codes, group, fitted.coded)


@contracted
def _add(total: Any, group: Group, fitted: Fitted, sign: Any) -> None:
    """Add to V' e what a group gives to it, or take it away."""
    for r in range(len(group.ones)):
        for j in range(64):
            given = fitted.coded[r, j] * fitted.fit[SCALE, j] + group.ones[r] * fitted.fit[ZERO, j] - group.exact[r, j]
            total[r, j] += sign * given


@contracted
def _improve(group: Group, centre: Any, fitted: Fitted, trial: Fitted, total: Any) -> None:
    """A better scale and zero for each row of a group, where there is one; `total` is V' e before and after. `trial` is room."""
    before = _lengths(total, fitted.sums)
    _add(total, group, fitted, np.float32(-1))
    _solve(group, fitted, total, trial.fit)
    _weigh(group, centre, trial)
    _add(total, group, trial, np.float32(1))
    after = _lengths(total, trial.sums)
    _add(total, group, trial, np.float32(-1))
    for j in range(64):
        if after[j] < before[j]:
            _take(trial, fitted, j)
    _add(total, group, fitted, np.float32(1))


@contracted
def _take(trial: Fitted, fitted: Fitted, j: int) -> None:
    """Row j of `fitted` becomes that of `trial`. By loops: copying arrays brings seconds of compiling with it."""
    for i in range(len(trial.fit)):
        fitted.fit[i, j] = trial.fit[i, j]
    for i in range(len(trial.sums)):
        fitted.sums[i, j] = trial.sums[i, j]
    for i in range(len(trial.coded)):
        fitted.coded[i, j] = trial.coded[i, j]


@contracted
def _lengths(total: Any, sums: Any) -> Any:
    """The mean squared error of each row's output, as far as this group changes it."""
    found = np.empty(64, np.float32)
    for j in range(64):
        found[j] = sums[ERROR, j]
    for r in range(total.shape[0]):
        for j in range(64):
            found[j] += total[r, j] * total[r, j]
    return found


@contracted
def _solve(group: Group, fitted: Fitted, rest: Any, trial: Any) -> None:
    """Least squares for scale and zero of each row, into `trial`, given V' e of all other groups (`rest`) and the codes."""
    fit, sums, coded, ones = fitted.fit, fitted.sums, fitted.coded, group.ones
    weight, square = np.float32(0), np.float32(0)
    for d in group.own:
        weight += d
    for v in ones:
        square += v * v
    found = np.empty((4, 64), np.float32)
    for j in range(64):
        found[Q, j], found[QQ, j], found[QW, j], found[W, j] = sums[Q, j], sums[QQ, j], sums[QW, j], sums[W, j]
    for r in range(len(ones)):
        for j in range(64):
            target = group.exact[r, j] - rest[r, j]
            found[QQ, j] += coded[r, j] * coded[r, j]
            found[Q, j] += coded[r, j] * ones[r]
            found[QW, j] += coded[r, j] * target
            found[W, j] += ones[r] * target
    oo = weight + square
    if not oo > np.float32(0):
        for j in range(64):
            _set(trial, j, fit[SCALE, j], fit[ZERO, j])
        return
    for j in range(64):
        q, w = found[Q, j], found[W, j]
        spread = found[QQ, j] - q * q / oo
        scale = (found[QW, j] - q * w / oo) / spread if spread > np.float32(1e-4) * oo else np.float32(0)
        zero = (w - scale * q) / oo
        # also false where something is not a number
        near = np.float32(0.5) * fit[SCALE, j] < scale < np.float32(2) * fit[SCALE, j]
        usable = near and zero - zero == np.float32(0)
        _set(trial, j, bfloat16(scale) if usable else fit[SCALE, j], bfloat16(zero) if usable else fit[ZERO, j])


@contracted
def _store(weights: Any, fits: Any, centre: Any, bits: int, codes: Any, scales: Any) -> None:
    """The codes [K, 8 * bits] and the scales and zeros [groups, 64, 2] of a block."""
    code = np.empty(64, np.int32)
    size = weights.shape[0] // fits.shape[0]
    for k in range(weights.shape[0]):
        fit = fits[k // size]
        for j in range(64):
            code[j] = np.int32(nearest_code(weights[k, j], fit[INVERSE, j], fit[ZERO, j], centre) + centre)
        pack_run(code, bits, codes[k])
    for g in range(fits.shape[0]):
        for j in range(64):
            scales[g, j, 0] = word_of(fits[g, SCALE, j]) >> 16
            scales[g, j, 1] = word_of(fits[g, ZERO, j]) >> 16
