"""Policies: which requests a pass serves. No policy changes a token, only when it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..registry import build

if TYPE_CHECKING:
    from ..request import Request

POLICIES = {
    "ragged": "understudy.policies.ragged:Ragged",
    "eqspec": "understudy.policies.eqspec:EqSpec",
    "exspec": "understudy.policies.exspec:ExSpec",
}
"""Policy name -> class, found through the registry; `name:key=value` sets its options."""
DEFAULT_POLICY = "ragged"


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


@runtime_checkable
class PaddedPolicy(Policy, Protocol):
    """A policy whose rows lie in a left-padded rectangle. Its passes either read prompts or verify drafts, never both."""

    def together(self, rows: int) -> int:
        """How many rows a pass verifies at most, of a cache of `rows`."""


def policy_of(spec: str) -> Policy:
    """The policy that `name` or `name:key=value,...` stands for. Raises UsageError for unknown names and options."""
    policy: Policy = build("policy", POLICIES, spec)
    return policy


def rows_together(policy: Policy, rows: int) -> int:
    """How many rows, of a cache of `rows`, a pass verifies side by side in a left-padded rectangle; 0: each row has a length of its
    own."""
    return policy.together(rows) if isinstance(policy, PaddedPolicy) else 0
