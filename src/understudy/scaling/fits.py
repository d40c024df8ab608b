"""Least squares with what it is worth: the share of the variance that a fit explains, and how sure its coefficients are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UnderstudyError

# Quantiles of Student's t at 97.5% for 1, 2, ... degrees of freedom: what a coefficient's standard error is multiplied by.
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
# The same of the normal distribution.
NORMAL = 1.959964
# A sum of squares below this share of the values' own is rounding.
ROUNDING = 1e-18


@dataclass(frozen=True)
class Fit:
    """Coefficients of a sum of terms that come nearest to what was measured."""

    # What each coefficient multiplies, such as "ln T"; "1" is the constant.
    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    # Half of each coefficient's 95% confidence interval. None: there are no more points than coefficients.
    margins: tuple[float, ...] | None
    # The share of the variance that is explained. None: all values are equal, so there is none.
    r2: float | None
    # How many values there were.
    points: int

    def at(self, *terms: float) -> float:
        """The fitted value where the terms have these values, the constant's 1 left out if it comes last."""
        given = (*terms, 1.0) if len(terms) < len(self.terms) and self.terms[-1] == "1" else terms
        return sum(coefficient * term for coefficient, term in zip(self.coefficients, given, strict=True))


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t with so many degrees of freedom (1 or more), to three digits."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    # The first two terms of its expansion around the normal quantile.
    cubed = NORMAL**3
    fifth = (5 * NORMAL**5 + 16 * cubed + 3 * NORMAL) / 96
    return NORMAL + (cubed + NORMAL) / (4 * freedom) + fifth / freedom**2


def least_squares(terms: Sequence[str], rows: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
    """The coefficients of `terms` for `values`, of which each has a row with the values of the terms.

    Raises UnderstudyError where numbers are not finite, or the points do not decide the coefficients."""
    matrix = np.asarray(rows, dtype=np.float64).reshape(len(values), len(terms))
    wanted = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(matrix).all() and np.isfinite(wanted).all()):
        raise UnderstudyError("Nothing is fitted to numbers that are infinite or undefined.")
    # Columns of one size, so that rank and rounding do not depend on units.
    sizes = np.abs(matrix).max(axis=0, initial=0.0)
    if not len(values) or not sizes.all() or np.linalg.matrix_rank(matrix / sizes) < len(terms):
        counted = f"{len(values)} point{'' if len(values) == 1 else 's'}"
        raise UnderstudyError(f"A fit of {', '.join(terms)} needs at least {len(terms)} points that differ in them, got {counted}.")
    scaled, *_ = np.linalg.lstsq(matrix / sizes, wanted, rcond=None)
    left = wanted - (matrix / sizes) @ scaled
    freedom = len(values) - len(terms)
    margins = None
    if freedom:
        spread = float(left @ left) / freedom * np.diag(np.linalg.inv((matrix / sizes).T @ (matrix / sizes)))
        margins = tuple((student(freedom) * np.sqrt(spread) / sizes).tolist())
    return Fit(tuple(terms), tuple((scaled / sizes).tolist()), margins, _explained(wanted, left), len(values))


def _explained(values: np.ndarray, left: np.ndarray) -> float | None:
    """1 - what is left over of the squares of `values` around their mean."""
    whole = float(((values - values.mean()) ** 2).sum())
    return None if whole <= ROUNDING * float(values @ values) else 1 - float(left @ left) / whole


def log_line(name: str, places: Sequence[float], values: Sequence[float]) -> Fit:
    """`a ln x + b` by least squares; `name` is what x is called, and x must be positive."""
    if any(place <= 0 for place in places):
        raise UnderstudyError(f"ln {name} needs positive {name}, got {min(places):g}.")
    return least_squares((f"ln {name}", "1"), [(math.log(place), 1.0) for place in places], values)
