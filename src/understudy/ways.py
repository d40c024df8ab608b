"""A choice between ways of doing rounds, by the tokens a second that each gives: all are tried now and then, since what else a
machine does, and what texts are like, changes."""

from __future__ import annotations

from dataclasses import dataclass, field

# Rounds of a trial, and from the beginning of one to that of the next.
TRIED, APART = 4, 64
# What was seen of a way loses so much of its weight with each of its rounds.
KEPT = 0.9


@dataclass
class WayChoice:
    """Chooses how many things are done side by side, down to one after another, for rounds of each kind on its own."""

    # By kind of round and number of things: rounds, and decaying sums of their tokens and seconds.
    seen: dict[tuple[int, int], tuple[int, float, float]] = field(default_factory=dict)

    def of(self, kind: int, several: int) -> int:
        """How many should be side by side in the next round of this `kind`: `several`, half as many, and so on, or 1."""
        ways = [several >> halved for halved in range(several.bit_length())]
        seen = {way: self.seen.get((kind, way), (0, 0.0, 0.0)) for way in ways}
        for way, (rounds, _, _) in seen.items():
            if rounds < TRIED:
                return way
        # Of ways that give as much, the one with fewer side by side.
        best = max(reversed(ways), key=lambda way: seen[way][1] / seen[way][2] if seen[way][2] else 0.0)
        trial, place = divmod(sum(rounds for rounds, _, _ in seen.values()), APART)
        others = [way for way in ways if way != best]
        return others[trial % len(others)] if others and place < TRIED else best

    def learn(self, kind: int, count: int, tokens: int, seconds: float) -> None:
        """Learn what a round of this `kind` gave with so many things side by side."""
        rounds, before, took = self.seen.get((kind, count), (0, 0.0, 0.0))
        self.seen[kind, count] = rounds + 1, KEPT * before + tokens, KEPT * took + seconds
