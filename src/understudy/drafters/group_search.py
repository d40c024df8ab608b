"""Searches of several groups of texts at the same time, on a device: each has a search of its own, since one keeps the state of one
draft there."""

from __future__ import annotations

from collections.abc import Callable

from ..plan.widths import of_group
from .growing_tree import GrowingTree
from .launch import DeviceTreeSearch
from .policy import DraftPolicy


class GroupSearch:
    """`together` searches for all texts, and one of `others` for each group of them where there are several. These are opened as
    groups come: `open` takes the rows and the width of one."""

    def __init__(self, together: DeviceTreeSearch, open: Callable[[int, int], DeviceTreeSearch], policy: DraftPolicy) -> None:
        self.together = together
        self.open = open
        self.policy = policy
        self.others: list[DeviceTreeSearch] = []
        self._free: list[DeviceTreeSearch] = []

    @property
    def widest(self) -> int:
        return self.together.widest

    def run(self, trees: list[GrowingTree]) -> None:
        if self.policy.groups == 1:
            self.together.run(trees)
            return
        search = self._taken()
        try:
            search.run(trees)
        finally:
            with self.policy.turn:
                self._free.append(search)

    def _taken(self) -> DeviceTreeSearch:
        with self.policy.turn:
            if self._free:
                return self._free.pop()
            opened = self.open(*of_group(self.together.widest, self.together.rows))
            # What was found not to work is not tried again.
            opened.kernels = self.together.kernels
            self.others.append(opened)
            return opened

    def drop(self) -> None:
        """Let go of all memory on the device."""
        for search in (self.together, *self.others):
            search.drop()

    def measure(self, width: int) -> float:
        return self.together.measure(width)
