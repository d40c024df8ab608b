"""Policies: which requests a pass serves. No policy changes a token, only when it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..request import Request

POLICIES = {"ragged": "understudy.policies.ragged:Ragged"}
"""Policy name -> class, found through the registry; `name:key=value` sets its options."""


@dataclass(frozen=True)
class Selection:
    """The decision for one pass."""

    # Waiting requests that get a cache row now, in this order.
    admit: Sequence[Request]
    # Requests that take part in the pass: running ones, or of `admit`.
    run: Sequence[Request]


class Policy(Protocol):
    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        """What the next pass does. `running` and `waiting` are in the order in which they came; `free`: cache rows to be had.

        It must run at least one request where there is any, and admit at most `free`."""
