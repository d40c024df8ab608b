"""Half-quadratic quantisation (HQQ) without data: w ~ (q - centre) * scale + zero in each row's groups of columns,
where the centre of codes of b bits is 2 ** (b - 1).

Two steps alternate: the errors are shrunk (a proximal step for the p-norm of the error, p = 0.7, so a few large errors
may stay), then scale and zero are fitted to the weights less their shrunk errors by least squares. Works on blocks:
the 64 rows of a block are 64 independent problems side by side, so nothing is ever summed across a vector."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import bits as words_of
from .compiled import compiled, float_of, word_of
from .numbers import nearest
from .pack import pack_run

ROUNDS = 10
# weight of the p-norm of the errors, which are counted in steps of a code
SHRINK = 0.2
# rows of `fit`, each of 64 numbers: what was fitted to a group, and its smallest and largest weight
SCALE, INVERSE, ZERO, LOW, HIGH = range(5)
# rows of `sums`, each of 64: over a group, of codes q and of targets t
Q, QQ, T, QT = range(4)


def solve(
    blocks: Tensor, group: int, bits: int = 4, rounds: int = ROUNDS, shrink: float = SHRINK
) -> tuple[Tensor, Tensor]:
    """Packed codes uint8 [nb, K, 8 * bits], (scale, zero) bfloat16 [K / group, nb * 64, 2] of float32 blocks [nb, K,
    64]."""
    return _solved(blocks, group, bits, rounds, shrink, len(blocks))


def scales(blocks: Tensor, group: int, bits: int, rounds: int) -> Tensor:
    """(scale, zero) bfloat16 [K / group, nb * 64, 2] of float32 blocks [nb, K, 64]: those of `solve`, without codes."""
    return _solved(blocks, group, bits, rounds, SHRINK, 0)[1]


def _solved(blocks: Tensor, group: int, bits: int, rounds: int, shrink: float, coded: int) -> tuple[Tensor, Tensor]:
    """Codes of the first `coded` blocks, scales and zeros of all."""
    count, columns, width = blocks.shape
    assert width == 64 and columns % group == 0, f"blocks {tuple(blocks.shape)} in groups of {group}"
    codes = torch.empty((coded, columns, 8 * bits), dtype=torch.uint8)
    found = torch.empty((columns // group, count * 64, 2), dtype=torch.bfloat16)
    _solve(blocks.numpy(), group, bits, rounds, np.float32(shrink), codes.numpy(), words_of(found))
    return codes, found


@compiled
def _solve(blocks: Any, group: int, bits: int, rounds: int, shrink: Any, codes: Any, scales: Any) -> None:
    tile = np.empty((group, 64), np.float32)
    code = np.empty(64, np.int32)
    fit = np.empty((5, 64), np.float32)
    sums = np.empty((4, 64), np.float32)
    centre = np.float32(1 << bits - 1)
    for b in range(blocks.shape[0]):
        for g in range(blocks.shape[1] // group):
            _start(blocks[b, g * group : (g + 1) * group], centre, tile, fit)
            for _ in range(rounds):
                _gather(tile, fit, centre, shrink, sums)
                _refit(sums, fit, group)
            for j in range(64):
                scales[g, b * 64 + j, 0] = word_of(fit[SCALE, j]) >> 16
                scales[g, b * 64 + j, 1] = word_of(fit[ZERO, j]) >> 16
            for k in range(group if b < codes.shape[0] else 0):
                for j in range(64):
                    code[j] = np.int32(nearest_code(tile[k, j], fit[INVERSE, j], fit[ZERO, j], centre) + centre)
                pack_run(code, bits, codes[b, g * group + k])


@compiled
def _start(block: Any, centre: Any, tile: Any, fit: Any) -> None:
    """Copy the group (what is not finite counts as 0) and fit the codes' range to the smallest and largest weight."""
    low, high = fit[LOW], fit[HIGH]
    low[:] = np.float32(0)
    high[:] = np.float32(0)
    for k in range(tile.shape[0]):
        for j in range(64):
            w = block[k, j]
            w = w if w - w == np.float32(0) else np.float32(0)
            tile[k, j] = w
            low[j] = w if k == 0 or w < low[j] else low[j]
            high[j] = w if k == 0 or w > high[j] else high[j]
    one, steps = np.float32(1), centre + centre - np.float32(1)
    each, below, above = one / steps, (centre - one) / steps, centre / steps
    for j in range(64):
        scale = high[j] * each - low[j] * each
        zero = low[j] * below + high[j] * above
        _set(fit, j, scale, zero)


@compiled
def _set(fit: Any, j: int, scale: Any, zero: Any) -> None:
    """Scale and zero as they will be stored (bfloat16). A group of equal weights has scale 0 and the centre for every
    code."""
    usable = scale > np.float32(1e-36)
    scale = bfloat16(scale) if usable else np.float32(0)
    fit[SCALE, j] = scale
    fit[INVERSE, j] = np.float32(1) / scale if usable else np.float32(0)
    fit[ZERO, j] = bfloat16(zero)


@compiled
def _gather(tile: Any, fit: Any, centre: Any, shrink: Any, sums: Any) -> None:
    """Sums over the group of q, q * q, t and q * t, where the target t is the weight less its shrunk error."""
    sums[:] = np.float32(0)
    for k in range(tile.shape[0]):
        for j in range(64):
            u = (tile[k, j] - fit[ZERO, j]) * fit[INVERSE, j]
            q = nearest_code(tile[k, j], fit[INVERSE, j], fit[ZERO, j], centre)
            error = u - q
            size = abs(error)
            kept = size - shrink * _inverse_root(size)
            kept = kept if kept > np.float32(0) else np.float32(0)
            target = u - (kept if error > np.float32(0) else -kept)
            sums[Q, j] += q
            sums[QQ, j] += q * q
            sums[T, j] += target
            sums[QT, j] += q * target


@compiled
def _refit(sums: Any, fit: Any, group: int) -> None:
    """Least squares in units of the old scale, so that no weight is too small or large for it."""
    n = np.float32(group)
    for j in range(64):
        spread = sums[QQ, j] - sums[Q, j] * sums[Q, j] / n
        slope = (sums[QT, j] - sums[Q, j] * sums[T, j] / n) / spread if spread > np.float32(0.1) else np.float32(1)
        offset = (sums[T, j] - slope * sums[Q, j]) / n
        scale, zero = fit[SCALE, j] * slope, fit[ZERO, j] + fit[SCALE, j] * offset
        if fit[SCALE, j] > np.float32(0) and scale - scale == np.float32(0) and zero - zero == np.float32(0):
            _set(fit, j, scale, zero)


@compiled
def nearest_code(weight: Any, inverse: Any, zero: Any, centre: Any) -> Any:
    """The nearest code less its centre."""
    last = centre - np.float32(1)
    u = (weight - zero) * inverse
    u = u if u > -centre else -centre
    u = u if u < last else last
    return nearest(u)


@compiled
def _inverse_root(x: Any) -> Any:
    """About x ** -0.3 (within 4%), by scaling the logarithm that a float's bits are."""
    word = np.float32(1.3 * 0x3F800000 - 0.3 * 366393.0) - np.float32(0.3) * np.float32(np.int32(word_of(x)))
    return float_of(np.int32(word))


@compiled
def bfloat16(x: Any) -> Any:
    """The nearest bfloat16, ties to even, as a float32."""
    word = word_of(x)
    return float_of((word + 0x7FFF + (word >> 16 & 1)) >> 16 << 16)
