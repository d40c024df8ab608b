"""What a pass gives a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from .logprobs import TokenLogprob
from .sequence import TokenSequence
from .tree import UNCOUNTED, DraftCounts


@dataclass(frozen=True)
class Advance:
    """What one pass gave one sequence."""

    sequence: TokenSequence
    # The new tokens; empty while a prompt is being read.
    tokens: list[int]
    # Nodes that were drafted for it, and how many of them became tokens.
    drafted: int
    accepted: int
    # Did it read tokens of its own text in this pass, in place of verifying a draft?
    reads: bool
    # Nodes it had in the pass.
    nodes: int
    # Log-probabilities of the new tokens; empty where they are not asked for.
    logprobs: list[TokenLogprob] = field(default_factory=list)
    # What it took to draft its tree.
    counts: DraftCounts = UNCOUNTED
    # What went wrong once the target had chosen, in the part of the pass that is this sequence's own; it ended the sequence.
    fault: Exception | None = None
