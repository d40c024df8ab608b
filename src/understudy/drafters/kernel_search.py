"""The tree search of `device_search` with a device's own kernels in place of torch's operations: five launches a level, where there
were some 250, two more where top-k, top-p or min-p drop tokens, and one more where a text's guesses are checked.

The arrays are the same, and so are the trees. What biases and penalties do to logits is torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..devices import OpenLevelKernels
from ..kernels.search_columns import ROW
from ..plan.widths import SCORED
from ..plan.widths import WIDEST as WIDEST_TOGETHER
from ..tree import Nodes
from .device_adjust import paths
from .device_guesses import straight
from .device_search import TensorSearch
from .device_state import LevelShape, SearchSizes
from .growing_tree import MOST_NODES
from .pace import LEAST_FREE, LIKELIEST, RANKS, ROUNDING, SHARPNESS, STEEPEST, WIDEST
from .policy import Shape


class KernelSearch(TensorSearch):
    """A search whose levels are run by kernels that `opened` opens."""

    def __init__(
        self,
        opened: OpenLevelKernels,
        forward: Callable[[Nodes], Tensor],
        make: Callable[[int], Tensor],
        shape: Shape,
        sizes: SearchSizes,
    ):
        super().__init__(forward, make, shape, sizes)
        given = self.given
        arrays = {name.replace(" ", "_"): array for name, array in given.named.items()}
        arrays |= {
            "cache_row": given["row"],
            "candidates": self.next["candidates"],
            "chances": self.next["chances"],
            "node": self.state["node"],
            "node_chances": self.state["node chances"],
            "count": self.state["count"],
            "figures": self.state["figures"],
            "tails": self.tails,
            "sharpness": self.sharpness,
            "steepest": self._constants(STEEPEST),
            # What a chain loses in a level at least, as a logarithm; what is run for nothing; what rounding takes.
            "likely": self._constants(math.log(LIKELIEST), LEAST_FREE, ROUNDING),
        }
        shaped = {"FORCED": shape.depth > 0, "LEVELS": shape.depth, "LIMIT": min(shape.width, MOST_NODES) or self.widest}
        fixed = {"MOST_NODES": MOST_NODES, "RANKS": RANKS, "SHARP": len(SHARPNESS), "STOPS": sizes.stops, "ROWS": self.rows}
        self.kernels = opened({**arrays, **fixed, **shaped, "widest": self.widest})

    def _constants(self, *numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.tails.device)

    def level(self, kind: LevelShape) -> None:
        kernels = self.kernels
        nodes = kernels.begin(kind.width, kind.guessed)
        logits = self.forward(straight(nodes) if kind.guessed else nodes)
        for first, scores in self._adjusted(kind, logits, nodes.tail):
            kernels.add(kernels.best(scores, first, kind.sampled, kind.filtered), first)
        if kind.guessed:
            kernels.agree(kind.rows)
        kernels.choose(kind.rows, min(WIDEST * kind.rows, WIDEST_TOGETHER, self.widest))

    def choose_first(self) -> None:
        self.kernels.clear()
        self.kernels.choose(1, min(WIDEST, WIDEST_TOGETHER, self.widest))

    def _adjusted(self, kind: LevelShape, logits: Tensor, tail: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits after the nodes of a level from a first one on, biased and penalised where that is asked for."""
        if self.adjustment is None or not kind.adjusted:
            yield 0, logits
            return
        given = self.given
        taken = self.kernels.taken[:, : kind.width]
        row = taken[ROW]
        path = paths(self.state["node"], taken, tail, given["length"][row])
        for first in range(0, kind.width, SCORED):
            part = slice(first, first + SCORED)
            yield first, self.adjustment(logits[part], row[part], path[part], given["stops"][row[part]])
