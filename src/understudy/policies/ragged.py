"""Ragged batches: every row has a length of its own, so whoever there is room for takes part in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import Selection

if TYPE_CHECKING:
    from ..request import Request


class Ragged:
    """First come, first served; a free row is taken at the next pass, and nobody waits for anybody's length."""

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        admitted = waiting[:free]
        return Selection(admitted, [*running, *admitted])
