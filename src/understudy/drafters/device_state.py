"""The arrays of a search on a device: what a draft is given, what it keeps, and what it tells the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.search_columns import CHILDREN, DEPTH, FOUND, PARENT, SPINE, THROUGH, TOKEN
from ..sequence import TokenSequence
from .growing_tree import MOST_NODES, Candidate, GrowingTree
from .pace import LIKELIEST, RANKS, ROUNDING, SHARPNESS
from .packed_tensors import Shapes

# Columns of state["node chances"] beside those that `kernels.search_columns` tells: from KEY on, the chance of each child that may
# still be run; from SCORES on, the children's scores.
KEY, SCORES, COLUMNS = THROUGH + RANKS, THROUGH + 2 * RANKS, THROUGH + 3 * RANKS
# What state["figures"] tells the host: how many candidates pay, how many more levels are likely to, and levels run so
# far.
FIGURES = ("wish", "left", "level")


@dataclass(frozen=True)
class SearchSizes:
    """The fixed sizes of a search on a device."""

    # The most sequences of a draft.
    rows: int
    # Cache slots of each.
    capacity: int
    # The most stop tokens of each.
    stops: int
    # The most nodes that all trees have together.
    nodes: int
    # The most nodes of a level.
    widest: int

    def given(self) -> tuple[Shapes, Shapes]:
        """Names and shapes of the int64 and of the float64 inputs of one draft."""
        row = ("row", "length", "slot", "straight", "most", "remaining", "offset", "top_k", "root")
        # Of each suggested node of the first level: the sequence's place in the draft, the token and the depth.
        guess: Shapes = {"guess": (3, self.widest)}
        integers: Shapes = {**dict.fromkeys(row, (self.rows,)), "stops": (self.rows, self.stops), "nodes": (1,), **guess}
        each: Shapes = dict.fromkeys(("temperature", "top_p", "min_p", "inside"), (self.rows,))
        learned: Shapes = {"belief": (self.rows, len(SHARPNESS))}
        common: Shapes = {
            "rate": (1,),
            "break even": (1,),
            "free": (1,),
            "cost": (self.widest,),
            "share": (self.nodes + 1,),
        }
        return integers, {**each, **learned, **common}


@dataclass(frozen=True)
class LevelShape:
    """What a recorded level is fixed to."""

    # Places for nodes, padded.
    width: int
    # Sequences of the draft.
    rows: int
    # Are tokens sampled in any of them, and does a sampled one drop unlikely tokens?
    sampled: bool
    filtered: bool
    # Are there biases or penalties in any of them?
    adjusted: bool = False
    # Are its nodes roots and chains that are suggested behind them?
    guessed: bool = False

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> LevelShape:
        """The kind of levels that draft for `sequences`; its width is not known yet."""
        sampled = [sequence.params for sequence in sequences if sequence.params.temperature > 0]
        filtered = any(params.filters for params in sampled)
        adjusted = any(sequence.params.adjusts for sequence in sequences)
        return cls(0, len(sequences), bool(sampled), filtered, adjusted)


def levels_left(tip: Tensor, depth: Tensor, least: Tensor) -> Tensor:
    """[m, rows] int64: `Pace.levels_left` of each chain, of chance `tip` at `depth` [rows], above each of `least` [m]."""
    chance = tip.clamp(min=1e-300)
    loss = (chance ** (1 / depth.double())).clamp(max=LIKELIEST)
    left = (torch.log(least[:, None] / chance) / torch.log(loss) + ROUNDING).trunc()
    return torch.where(tip > least[:, None], left, 0.0).clamp(0, MOST_NODES).to(torch.int64)


def grown(tree: GrowingTree, numbers: list[list[int]], chances: list[list[float]]) -> None:
    """Put the nodes in `tree`, with their children that were never run and what calibration learns from."""
    tree.tokens = [node[TOKEN] for node in numbers]
    tree.parents = [node[PARENT] for node in numbers]
    tree.deepest = max(node[DEPTH] for node in numbers)
    tree.nodes_run = len(numbers)
    for i, (node, known) in enumerate(zip(numbers, chances, strict=True)):
        tokens = node[CHILDREN : CHILDREN + node[FOUND]]
        tree.children[i] = (known[SCORES : SCORES + node[FOUND]], tokens)
        for rank, token in enumerate(tokens):
            if (chance := known[THROUGH + rank]) >= 0:
                tree.pool.append(Candidate(chance, i, token, node[DEPTH] + 1, bool(node[SPINE]) and rank == 0))
