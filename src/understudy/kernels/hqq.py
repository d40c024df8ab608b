"""Half-quadratic quantisation (HQQ) without data: w ~ (q - centre) * scale + zero in each row's groups of columns,
where the centre of codes of b bits is 2 ** (b - 1).

Two steps alternate: the errors are shrunk (a proximal step for the p-norm of the error, p = 0.7, so a few large errors
may stay), then scale and zero are fitted to the weights less their shrunk errors by least squares. Works on blocks:
the 64 rows of a block are 64 independent problems side by side, so nothing is ever summed across a vector."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .compiled import bits as words_of
from .compiled import compiled
from .quantising import COLUMN, Quantising, code_group
from .vector import FLOATS, LONG, WORDS

ROUNDS = 10
# weight of the p-norm of the errors, which are counted in steps of a code
SHRINK = 0.2


def solve(
    blocks: Tensor, group: int, bits: int = 4, rounds: int = ROUNDS, shrink: float = SHRINK
) -> tuple[Tensor, Tensor]:
    """Packed codes uint8 [nb, K, 8 * bits], (scale, zero) bfloat16 [K / group, nb * 64, 2] of finite float32
    blocks [nb, K, 64]."""
    return _solved(blocks, group, bits, rounds, shrink, len(blocks))


def scales(blocks: Tensor, group: int, bits: int, rounds: int) -> Tensor:
    """(scale, zero) bfloat16 [K / group, nb * 64, 2] of finite float32 blocks [nb, K, 64]: those of `solve`, without codes."""
    return _solved(blocks, group, bits, rounds, SHRINK, 0)[1]


def _solved(blocks: Tensor, group: int, bits: int, rounds: int, shrink: float, coded: int) -> tuple[Tensor, Tensor]:
    """Codes of the first `coded` blocks, scales and zeros of all."""
    count, columns, width = blocks.shape
    assert width == 64 and columns % group == 0, f"blocks {tuple(blocks.shape)} in groups of {group}"
    codes = torch.empty((coded, columns, 8 * bits), dtype=torch.uint8)
    found = torch.empty((columns // group, count * 64, 2), dtype=torch.bfloat16)
    words = words_of(found).view(np.uint32)[..., 0]
    _solve(blocks.contiguous().numpy(), group, bits, rounds, np.float32(shrink), codes.numpy(), words)
    return codes, found


@compiled
def _solve(blocks: Any, group: int, bits: int, rounds: int, shrink: Any, codes: Any, words: Any) -> None:
    """`words` uint32 [groups, rows]: scale and zero."""
    groups, rows = words.shape
    for b in range(blocks.shape[0]):
        for g in range(groups):
            weights = blocks.ctypes.data + (b * blocks.shape[1] + g * group) * 256
            found = words.ctypes.data + (g * rows + b * 64) * 4
            for v in range(0, 256, 64):
                if bits == 4:
                    _fit_4(weights + v, group, rounds, shrink, found + v)
                elif bits == 3:
                    _fit_3(weights + v, group, rounds, shrink, found + v)
                elif bits == 6:
                    _fit_6(weights + v, group, rounds, shrink, found + v)
                else:
                    _fit_2(weights + v, group, rounds, shrink, found + v)
            if b < codes.shape[0]:
                code_group(weights, found, group, bits, codes.ctypes.data + (b * blocks.shape[1] + g * group) * 8 * bits)


def _solver(bits: int) -> Any:
    """Code for use in a kernel: finds scale and zero of 16 rows of a group. `weights` and `words` are addresses."""

    @intrinsic
    def fit_rows(typing: Any, weights: Any, columns: Any, rounds: Any, shrink: Any, words: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, columns, rounds, shrink, words = arguments
            code = _Solving(context, builder, bits, weights, columns, shrink)
            scale, _, zero = code.repeated(rounds, code.start(), lambda _, fit: code.better(fit))
            code.keep(scale, zero, words)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float32, types.int64), generate

    return fit_rows


class _Solving(Quantising):
    """Code for 16 rows of one group; a fit is scale, inverse and zero of each."""

    def __init__(self, context: Any, builder: Any, bits: int, weights: Any, columns: Any, shrink: Any) -> None:
        super().__init__(context, builder)
        self.bits, self.weights, self.columns, self.shrink = bits, weights, columns, self.spread(shrink)
        self.size = self.spread(builder.sitofp(columns, FLOATS.element))

    def column(self, k: Any) -> Any:
        return self.load(self.at(self.weights, self.b.mul(k, LONG(COLUMN))), FLOATS)

    def start(self) -> Sequence[Any]:
        """The codes' range is that from the smallest to the largest weight."""
        b, one = self.b, np.float32(1)

        def wider(k: Any, ends: Sequence[Any]) -> Sequence[Any]:
            w = self.column(k)
            low, high = (b.select(b.fcmp_ordered(sign, w, end), w, end) for sign, end in zip("<>", ends, strict=True))
            return [low, high]

        first = self.column(LONG(0))
        low, high = self.repeated(self.columns, [first, first], wider)
        centre = np.float32(1 << self.bits - 1)
        steps = centre + centre - one
        each, below, above = (self.all(FLOATS, float(x / steps)) for x in (one, centre - one, centre))
        scale = b.fsub(b.fmul(high, each), b.fmul(low, each))
        return self.rounded(scale, b.fadd(b.fmul(low, below), b.fmul(high, above)))

    def rounded(self, scale: Any, zero: Any) -> Sequence[Any]:
        """Scale and zero as they will be stored (bfloat16). A group of equal weights has scale 0 and the centre for every code."""
        scale = self.bfloat16(scale)
        inverse = self.inverse(scale)
        usable = self.b.fcmp_ordered(">", inverse, self.all(FLOATS, 0.0))
        return [self.b.select(usable, scale, self.all(FLOATS, 0.0)), inverse, self.bfloat16(zero)]

    def better(self, fit: Sequence[Any]) -> Sequence[Any]:
        """The fit after one round."""
        zeros = [self.all(FLOATS, 0.0)] * 4
        return self.fitted(fit, self.repeated(self.columns, zeros, lambda k, sums: self.added(k, sums, fit)))

    def added(self, k: Any, sums: Sequence[Any], fit: Sequence[Any]) -> Sequence[Any]:
        """Sums of q, q * q, t and q * t with those of a column, where the target t is the weight less its shrunk error."""
        b, (_, inverse, zero) = self.b, fit
        steps = self.steps(self.column(k), inverse, zero)
        code = self.nearest(steps, self.bits)
        error = b.fsub(steps, code)
        size = self.intrinsic("llvm.fabs.v16f32", FLOATS, error)
        kept = b.fsub(size, b.fmul(self.shrink, self.inverse_root(size)))
        kept = b.select(b.fcmp_ordered(">", kept, self.all(FLOATS, 0.0)), kept, self.all(FLOATS, 0.0))
        signed = b.select(b.fcmp_ordered(">", error, self.all(FLOATS, 0.0)), kept, b.fneg(kept))
        target = b.fsub(steps, signed)
        given = code, b.fmul(code, code), target, b.fmul(code, target)
        return [b.fadd(total, each) for total, each in zip(sums, given, strict=True)]

    def inverse_root(self, x: Any) -> Any:
        """About x ** -0.3 (within 4%), by scaling the logarithm that a float's bits are."""
        b = self.b
        scaled = b.fmul(self.all(FLOATS, float(np.float32(0.3))), b.sitofp(b.bitcast(x, WORDS), FLOATS))
        word = b.fsub(self.all(FLOATS, float(np.float32(1.3 * 0x3F800000 - 0.3 * 366393.0))), scaled)
        return b.bitcast(b.fptosi(word, WORDS), FLOATS)

    def fitted(self, fit: Sequence[Any], sums: Sequence[Any]) -> Sequence[Any]:
        """Least squares in units of the old scale, so that no weight is too small or large for it."""
        b, n = self.b, self.size
        q, qq, t, qt = sums
        spread = b.fsub(qq, b.fdiv(b.fmul(q, q), n))
        slope = b.fdiv(b.fsub(qt, b.fdiv(b.fmul(q, t), n)), spread)
        slope = b.select(b.fcmp_ordered(">", spread, self.all(FLOATS, 0.1)), slope, self.all(FLOATS, 1.0))
        offset = b.fdiv(b.fsub(t, b.fmul(slope, q)), n)
        scale, zero = b.fmul(fit[0], slope), b.fadd(fit[2], b.fmul(fit[0], offset))
        usable = b.fcmp_ordered(">", fit[0], self.all(FLOATS, 0.0))
        for number in (scale, zero):
            usable = b.and_(usable, b.fcmp_ordered("==", b.fsub(number, number), self.all(FLOATS, 0.0)))
        return [b.select(usable, new, old) for new, old in zip(self.rounded(scale, zero), fit, strict=True)]


_fit_2, _fit_3, _fit_4, _fit_6 = map(_solver, (2, 3, 4, 6))
