"""The part of a search on a device that lies below one child of its root, as a search that began there would hold it: what was
drafted ahead of a pass, once the pass has chosen that child."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels.search_columns import CHANCE, CHILDREN, DEPTH, PARENT, SPINE, TOKEN
from .device_state import SCORES
from .growing_tree import MOST_NODES
from .packed_tensors import PackedTensors


@dataclass(frozen=True)
class Grown:
    """Nodes of the only sequence of a search, and what they see."""

    # As `TensorSearch.state`, in memory of the host.
    state: PackedTensors
    # [n, MOST_NODES] int64: as `TensorSearch.tails`, of each node.
    tails: Tensor


def child_of_root(state: PackedTensors, token: int) -> int | None:
    """The node of the first sequence in `state` that follows the root with `token`; None where there is none."""
    nodes = state["node"][0, : int(state["count"][0])]
    found = ((nodes[:, PARENT] == 0) & (nodes[:, TOKEN] == token)).nonzero()
    return int(found[0]) if len(found) else None


def below(state: PackedTensors, top: int) -> list[int]:
    """Node `top` of the first sequence in `state`, the first of the list, and all nodes below it."""
    parents = state["node"][0, : int(state["count"][0]), PARENT].tolist()
    kept = [top]
    inside = {top}
    for node in range(top + 1, len(parents)):
        if parents[node] in inside:
            kept.append(node)
            inside.add(node)
    return kept


def subtree(state: PackedTensors, kept: list[int], length: int, into: PackedTensors) -> Grown:
    """The nodes `kept` of `state`, as `below` gives them, as a search of their own: chances are those after the first, which is the
    root and lies at slot `length`, the others behind it. `into`: memory for it, of the same shapes."""
    nodes = state["node"][0][kept]
    chances = state["node chances"][0][kept]
    new = {old: number for number, old in enumerate(kept)}
    parents = [new.get(parent, -1) for parent in nodes[:, PARENT].tolist()]
    nodes[:, PARENT] = torch.tensor(parents)
    nodes[:, DEPTH] -= int(nodes[0, DEPTH])
    nodes[:, SPINE] = torch.tensor(_spine(nodes.tolist(), parents))
    # -1 stands for no chance, and stays.
    known = chances[:, CHANCE:SCORES]
    chances[:, CHANCE:SCORES] = torch.where(known < 0, known, known / chances[0, CHANCE])
    into.integers.zero_()
    into.reals.fill_(-1.0)
    into["node"][0, : len(kept)] = nodes
    into["node chances"][0, : len(kept)] = chances
    into["count"][0] = len(kept)
    into["figures"][2] = 1 + int(nodes[:, DEPTH].max())
    return Grown(into, _tails(parents, nodes[:, DEPTH].tolist(), length))


def _spine(nodes: list[list[int]], parents: list[int]) -> list[int]:
    """For each of `nodes` whether it is on the chain of first choices from the first of them."""
    spine = [1]
    for node, parent in zip(nodes[1:], parents[1:], strict=True):
        spine.append(int(spine[parent] and nodes[parent][CHILDREN] == node[TOKEN]))
    return spine


def _tails(parents: list[int], depths: list[int], length: int) -> Tensor:
    """[n, MOST_NODES] int64: the slots of the nodes between the root, at slot `length`, and each node, its own the last."""
    tails = np.zeros((len(parents), MOST_NODES), np.int64)
    for node in range(1, len(parents)):
        tails[node] = tails[parents[node]]
        tails[node, depths[node] - 1] = length + node
    return torch.from_numpy(tails)
