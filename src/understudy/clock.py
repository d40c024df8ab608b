"""What all passes of an engine took, and what was in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Sums over all passes. Times are seconds."""

    draft: float = 0.0
    # Includes waiting for weights.
    verify: float = 0.0
    passes: int = 0
    # Sequences that took part in them, each pass counted, and their nodes.
    rows: int = 0
    nodes: int = 0

    def count(self, rows: int, nodes: int, draft: float, verify: float) -> None:
        """One pass is over: its rows and nodes, and the seconds of drafting and of verifying."""
        self.passes += 1
        self.rows += rows
        self.nodes += nodes
        self.draft += draft
        self.verify += verify
