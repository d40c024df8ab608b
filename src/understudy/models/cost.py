"""What a pass of the exact model takes, learned from the passes that were run."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

# What a pass costs besides its nodes, in nodes, where nobody knows better.
PRIOR_NODES = 32
# The variance of the number of nodes at which what was seen weighs as much as this prior.
PRIOR_VARIANCE = 64.0


@dataclass
class PassCost:
    """Seconds that one more node adds to a pass. Arithmetic takes base + each * nodes seconds, beside weights that
    come at their own speed."""

    # Nodes are computed so many at a time: a pass of one node costs what a pass of `unit` does.
    unit: int = 1
    # Before passes of different sizes were seen, a pass is taken to cost as much as its nodes and so many more.
    prior: float = PRIOR_NODES
    # Decaying sums of 1, n, b, n * n and n * b over passes of n nodes that took b seconds of arithmetic.
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    # Nodes, seconds of arithmetic and seconds of waiting for weights of the latest pass.
    last: tuple[int, float, float] | None = None

    def learn(self, nodes: int, busy: float, waiting: float) -> None:
        n = self._whole(nodes)
        self.sums = [0.9 * s + t for s, t in zip(self.sums, (1.0, n, busy, n * n, n * busy), strict=True)]
        self.last = (nodes, busy, waiting)

    @property
    def each(self) -> float:
        """Seconds that a node adds. Before passes of different sizes were seen, the prior decides."""
        if not self.sums[0]:
            return 0.0
        count, nodes, busy, squares, products = self.sums
        nodes, busy = nodes / count, busy / count
        variance, together = squares / count - nodes * nodes, products / count - nodes * busy
        return max((together + PRIOR_VARIANCE * busy / (nodes + self.prior)) / (variance + PRIOR_VARIANCE), 0.0)

    def extra(self, nodes: int, more: int) -> float:
        """Seconds by which a pass of `nodes + more` outlasts one of `nodes`; none while the weights take longer to
        come."""
        return self.seconds(nodes + more) - self.seconds(nodes)

    def seconds(self, nodes: int) -> float:
        """What a pass of so many nodes should take."""
        if self.last is None:
            return 0.0
        seen, busy, waiting = self.last
        link = busy + waiting if waiting > 0.01 * busy else 0.0
        return max(busy + self.each * (self._whole(nodes) - self._whole(seen)), link)

    def nodes_within(self, seconds: float, most: int) -> int:
        """How many nodes, `most` at most, a pass of so many seconds may have; 0: even the smallest takes longer."""
        units = -(-most // self.unit)
        return min(bisect_right(range(1, units + 1), seconds, key=lambda count: self.seconds(count * self.unit)) * self.unit, most)

    def share(self, nodes: int) -> float:
        """Seconds a node of the next ones after `nodes`."""
        return self.extra(nodes, self.unit) / self.unit

    def _whole(self, nodes: int) -> int:
        return -(-nodes // self.unit) * self.unit
