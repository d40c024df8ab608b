"""A policy from outside the package: the newest request goes first, one at a time."""

from collections.abc import Sequence

from understudy.policies import Selection
from understudy.request import Request


class Newest:
    selected = 0

    def __init__(self, *, most: int = 1):
        self.most = most

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        Newest.selected += 1
        room = min(free, self.most - len(running))
        admitted = list(reversed(waiting))[: max(room, 0)]
        return Selection(admitted, [*running, *admitted])
