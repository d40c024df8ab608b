"""What a pass of the target takes, and how many nodes it should have for it: the third law, from this machine's own figures.

The paper takes the verified width k at which arithmetic intensity meets the machine's: b requests of k nodes each bring
W + b * KV bytes and b * k * F operations, so k = I_crit * (W / b + KV) / F. Here bytes and operations are the seconds that were
measured for them: those of a pass whatever is in it (W), those of one request (KV), and those of one node (F)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnderstudyError
from .fits import Fit, least_squares


@dataclass(frozen=True)
class PassSample:
    """What passes of one kind took, on average."""

    # Requests of a pass, and nodes of all of them.
    rows: float
    nodes: float
    # Seconds of arithmetic, and of waiting for weights beside it.
    busy: float
    waiting: float


@dataclass(frozen=True)
class PassLaw:
    """Seconds of a pass of b requests with k nodes each: the larger of `link` and `whole + b * (request + k * node)`."""

    whole: float
    request: float
    node: float
    # Seconds in which the weights of a pass come; 0: nothing was waited for.
    link: float
    # The least squares that gave the first three.
    fit: Fit

    def seconds(self, rows: float, width: float) -> float:
        """Seconds of a pass of `rows` requests with `width` nodes each."""
        return max(self.link, self.whole + rows * (self.request + width * self.node))

    @property
    def linked(self) -> bool:
        """Does the link take longer than what a pass computes anyway, so that nodes come free up to some width?"""
        return self.link > self.whole

    def width(self, rows: float) -> float:
        """The nodes of each of `rows` requests at which their arithmetic takes as long as what comes with every pass anyway.

        Fewer waste the weights' way, more wait for the arithmetic."""
        whole = self.link - self.whole if self.linked else self.whole
        request = -self.request if self.linked else self.request
        return max((whole / rows + request) / self.node, 1.0)

    @property
    def terms(self) -> tuple[float, float]:
        """The two numbers of the width a / b + c."""
        sign = -1.0 if self.linked else 1.0
        whole = self.link - self.whole if self.linked else self.whole
        return whole / self.node, sign * self.request / self.node


# Waiting for less than this share of the arithmetic is not waiting for the link.
NO_WAIT = 0.01
# What all nodes of a pass add to it is rounding below this share of it.
ROUNDING = 1e-6


def pass_law(passes: Sequence[PassSample]) -> PassLaw:
    """The law of what was measured. Where one kind of batch alone was, a request is taken to cost nothing but its nodes.

    Raises UnderstudyError where the numbers of nodes do not differ, or nodes took no time."""
    several = len({round(one.rows, 1) for one in passes}) > 1
    terms = ("1", "b", "b k") if several else ("1", "b k")
    rows = [(1.0, one.rows, one.nodes) if several else (1.0, one.nodes) for one in passes]
    busy = [one.busy for one in passes]
    fit = least_squares(terms, rows, busy)
    if several and fit.coefficients[1] < 0:
        # A request cannot make a pass shorter: what it seems to save is noise.
        fit = least_squares(("1", "b k"), [(1.0, one.nodes) for one in passes], busy)
    whole, node = max(fit.coefficients[0], 0.0), fit.coefficients[-1]
    request = fit.coefficients[1] if len(fit.terms) == 3 else 0.0
    if node * max(one.nodes for one in passes) <= ROUNDING * max(busy):
        raise UnderstudyError("Passes of more nodes took no longer here, so no number of nodes is too many: measure wider ones.")
    waited = [one.busy + one.waiting for one in passes if one.waiting > NO_WAIT * one.busy]
    return PassLaw(whole, request, node, sorted(waited)[len(waited) // 2] if waited else 0.0, fit)
