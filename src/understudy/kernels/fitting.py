"""Scales and zeros that lessen the error of a Linear's output on inputs like those of a text.

HQQ finds a scale and a zero for each row and group of columns from the weights alone. Here they go on from there: with
e the errors of a row's weights and E[x x'] ~ diag(own) + V V', the output's mean squared error is e' diag(own) e + |V' e|^2.
One group after another gets the scale and zero that make it least, given the errors of all other groups; then its codes are
those nearest to the exact weights again, so every weight stays in its code's bin. What does not help is not taken.
The 64 rows of a block are 64 problems side by side."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import bits as words_of
from .compiled import contracted, float_of, word_of
from .hqq import bfloat16, nearest_code
from .pack import pack_run

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
    _fit(
        blocks.numpy(), words_of(found), own.numpy(), directions.contiguous().numpy(), bits, SWEEPS, codes.numpy()
    )
    return codes, found


@contracted
def _fit(blocks: Any, scales: Any, own: Any, directions: Any, bits: int, sweeps: int, codes: Any) -> None:
    count, columns, _ = blocks.shape
    groups, rank = scales.shape[0], directions.shape[1]
    group = columns // groups
    centre = np.float32(1 << bits - 1)
    tile = np.empty((columns, 64), np.float32)
    fits = np.empty((groups, 3, 64), np.float32)
    sums = np.empty((groups, 5, 64), np.float32)
    # V' of each group's codes, of its weights, and of ones
    coded = np.empty((groups, rank, 64), np.float32)
    exact = np.empty((groups, rank, 64), np.float32)
    ones = np.empty((groups, rank), np.float32)
    # V' e over all groups
    total = np.empty((rank, 64), np.float32)
    for b in range(count):
        total[:] = np.float32(0)
        for g in range(groups):
            part = slice(g * group, (g + 1) * group)
            _open(blocks[b, part], scales, g, b, tile[part], fits[g])
            _targets(tile[part], directions[part], exact[g], ones[g])
            _weigh(tile[part], own[part], directions[part], fits[g], centre, coded[g], sums[g])
            _add(total, coded[g], exact[g], ones[g], fits[g], np.float32(1))
        for _ in range(sweeps):
            for g in range(groups):
                part = slice(g * group, (g + 1) * group)
                _improve(
                    tile[part],
                    own[part],
                    directions[part],
                    centre,
                    fits[g],
                    sums[g],
                    coded[g],
                    exact[g],
                    ones[g],
                    total,
                )
        _store(tile, fits, centre, bits, b, codes, scales)


@contracted
def _open(block: Any, scales: Any, g: int, b: int, tile: Any, fit: Any) -> None:
    """Copy a group's weights (what is not finite counts as 0), and where its scale and zero begin."""
    for k in range(tile.shape[0]):
        for j in range(64):
            w = block[k, j]
            tile[k, j] = w if w - w == np.float32(0) else np.float32(0)
    for j in range(64):
        _set(
            fit,
            j,
            float_of(np.int64(scales[g, b * 64 + j, 0]) << 16),
            float_of(np.int64(scales[g, b * 64 + j, 1]) << 16),
        )


@contracted
def _set(fit: Any, j: int, scale: Any, zero: Any) -> None:
    fit[SCALE, j] = scale
    fit[INVERSE, j] = np.float32(1) / scale if scale > np.float32(1e-36) else np.float32(0)
    fit[ZERO, j] = zero


@contracted
def _targets(tile: Any, directions: Any, exact: Any, ones: Any) -> None:
    """V' of a group's weights, and of ones."""
    exact[:] = np.float32(0)
    ones[:] = np.float32(0)
    for k in range(tile.shape[0]):
        for r in range(len(ones)):
            v = directions[k, r]
            ones[r] += v
            for j in range(64):
                exact[r, j] += v * tile[k, j]


@contracted
def _weigh(tile: Any, own: Any, directions: Any, fit: Any, centre: Any, coded: Any, sums: Any) -> None:
    """V' of a group's codes, and its `sums`."""
    sums[:] = np.float32(0)
    coded[:] = np.float32(0)
    q = np.empty(64, np.float32)
    for k in range(tile.shape[0]):
        d = own[k]
        for j in range(64):
            w = tile[k, j]
            q[j] = nearest_code(w, fit[INVERSE, j], fit[ZERO, j], centre)
            e = q[j] * fit[SCALE, j] + fit[ZERO, j] - w
            weighted = d * q[j]
            sums[Q, j] += weighted
            sums[QQ, j] += weighted * q[j]
            sums[QW, j] += weighted * w
            sums[W, j] += d * w
            sums[ERROR, j] += d * e * e
        for r in range(coded.shape[0]):
            v = directions[k, r]
            for j in range(64):
                coded[r, j] += v * q[j]


@contracted
def _add(total: Any, coded: Any, exact: Any, ones: Any, fit: Any, sign: Any) -> None:
    """Add to V' e what a group gives to it, or take it away."""
    for r in range(len(ones)):
        for j in range(64):
            total[r, j] += sign * (coded[r, j] * fit[SCALE, j] + ones[r] * fit[ZERO, j] - exact[r, j])


@contracted
def _improve(
    tile: Any,
    own: Any,
    directions: Any,
    centre: Any,
    fit: Any,
    sums: Any,
    coded: Any,
    exact: Any,
    ones: Any,
    total: Any,
) -> None:
    """A better scale and zero for each row of a group, where there is one; `total` is V' e before and after."""
    trial, trial_sums, trial_coded = np.empty_like(fit), np.empty_like(sums), np.empty_like(coded)
    before = _lengths(total, sums)
    _add(total, coded, exact, ones, fit, np.float32(-1))
    _solve(sums, own, coded, exact, ones, total, fit, trial)
    _weigh(tile, own, directions, trial, centre, trial_coded, trial_sums)
    _add(total, trial_coded, exact, ones, trial, np.float32(1))
    after = _lengths(total, trial_sums)
    _add(total, trial_coded, exact, ones, trial, np.float32(-1))
    for j in range(64):
        if after[j] < before[j]:
            fit[:, j] = trial[:, j]
            sums[:, j] = trial_sums[:, j]
            coded[:, j] = trial_coded[:, j]
    _add(total, coded, exact, ones, fit, np.float32(1))


@contracted
def _lengths(total: Any, sums: Any) -> Any:
    """The mean squared error of each row's output, as far as this group changes it."""
    found = sums[ERROR].copy()
    for r in range(total.shape[0]):
        for j in range(64):
            found[j] += total[r, j] * total[r, j]
    return found


@contracted
def _solve(sums: Any, own: Any, coded: Any, exact: Any, ones: Any, rest: Any, fit: Any, trial: Any) -> None:
    """Least squares for scale and zero of each row, given V' e of all other groups (`rest`) and the codes."""
    weight, square = np.float32(0), np.float32(0)
    for d in own:
        weight += d
    for v in ones:
        square += v * v
    qq, qo, qt, ot = sums[QQ].copy(), sums[Q].copy(), sums[QW].copy(), sums[W].copy()
    for r in range(len(ones)):
        for j in range(64):
            target = exact[r, j] - rest[r, j]
            qq[j] += coded[r, j] * coded[r, j]
            qo[j] += coded[r, j] * ones[r]
            qt[j] += coded[r, j] * target
            ot[j] += ones[r] * target
    oo = weight + square
    if not oo > np.float32(0):
        trial[:] = fit
        return
    for j in range(64):
        spread = qq[j] - qo[j] * qo[j] / oo
        scale = (qt[j] - qo[j] * ot[j] / oo) / spread if spread > np.float32(1e-4) * oo else np.float32(0)
        zero = (ot[j] - scale * qo[j]) / oo
        # also false where something is not a number
        usable = np.float32(0.5) * fit[SCALE, j] < scale < np.float32(2) * fit[SCALE, j] and zero - zero == np.float32(
            0
        )
        _set(trial, j, bfloat16(scale) if usable else fit[SCALE, j], bfloat16(zero) if usable else fit[ZERO, j])


@contracted
def _store(tile: Any, fits: Any, centre: Any, bits: int, b: int, codes: Any, scales: Any) -> None:
    code = np.empty(64, np.int32)
    group = tile.shape[0] // fits.shape[0]
    for k in range(tile.shape[0]):
        fit = fits[k // group]
        for j in range(64):
            code[j] = np.int32(nearest_code(tile[k, j], fit[INVERSE, j], fit[ZERO, j], centre) + centre)
        pack_run(code, bits, codes[b, k])
    for g in range(fits.shape[0]):
        for j in range(64):
            scales[g, b * 64 + j, 0] = word_of(fits[g, SCALE, j]) >> 16
            scales[g, b * 64 + j, 1] = word_of(fits[g, ZERO, j]) >> 16
