"""What a planned conversation takes, and what may be given up for it: for people, a line each, and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .plan.conversation import Conversation
from .plan.placement import Plan
from .plan.rounds import Round
from .plan.sizes import format_size, whole_mib

# Of its speed with all the memory there could be, what drafting must keep to count as kept (SpecMemo's measure).
KEPT = 0.96


@dataclass(frozen=True)
class Concession:
    """One arrangement, and the smallest budget that it works in."""

    # What is given up, after all before it.
    gives_up: str
    # Options that say so, as a person writes them; empty: the plan does it by itself.
    options: str
    budget_bytes: int
    expected: Round
    plan: Plan
    # The plan's bytes by the names that people see.
    terms: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the plan."""
        found = {"gives_up": self.gives_up, "options": self.options, "budget": self.budget_bytes, "copy": self.plan.copy}
        return found | {"tokens_per_second": self.expected.tokens_per_second, "round": self.expected.to_dict()}


@dataclass(frozen=True)
class Chat:
    """What a conversation takes: the answer of `plan --chat`."""

    conversation: Conversation
    # What is held: one of FITS.
    fit: str
    budget_bytes: int
    # In the order in which things are given up; the last is the lower bound.
    steps: tuple[Concession, ...]
    # The smallest arrangement at which drafting keeps KEPT of its speed; None: nothing drafts.
    keeping: Concession | None
    # What to run, with the memory it is given.
    chosen: Concession
    notes: tuple[str, ...] = ()
    # Keys and values of few bits, in place of what comes after `exact_steps`: shown, and never chosen for anyone. None: not here.
    inexact: Concession | None = None

    @property
    def exact_steps(self) -> list[Concession]:
        """The steps that need no options: all that the plan gives up by itself."""
        return [step for step in self.steps if not step.options]

    @property
    def lower_bound(self) -> Concession:
        """Nothing drafts, nothing stays, and the ring is the smallest."""
        return min(self.steps, key=lambda step: step.budget_bytes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "conversation": {**asdict(self.conversation), "tokens": self.conversation.tokens},
            "fit": self.fit,
            "budget": self.budget_bytes,
            "lower_bound": self.lower_bound.to_dict(),
            "keeps_96_percent": self.keeping.to_dict() if self.keeping is not None else None,
            "concessions": [step.to_dict() for step in self.steps],
            "only_if_asked": self.inexact.to_dict() if self.inexact is not None else None,
            "chosen": {**self.chosen.to_dict(), "terms": self.chosen.terms},
            "plan": self.chosen.plan.to_dict(),
            "notes": list(self.notes),
        }

    @property
    def _streamed(self) -> str:
        """What a pass streams: of experts, as many as its tokens go to."""
        plan = self.chosen.plan
        one, most = (format_size(nbytes) for nbytes in (round(plan.streamed_by(1)), plan.streamed_bytes))
        return most if one == most else f"{one} for one token, up to {most}"

    def lines(self) -> list[str]:
        """For people."""
        talk = self.conversation
        clients = f"{talk.clients} conversations of " if talk.clients > 1 else ""
        width = max(map(len, self.chosen.terms))
        taken = [f"{name:<{width}}  {format_size(nbytes):>10}" for name, nbytes in self.chosen.terms.items()]
        plan, bound = self.chosen.plan, self.lower_bound
        found = [
            f"{clients}{talk.turns} turns: {talk.tokens} tokens each",
            *taken,
            f"{'in all':<{width}}  {format_size(plan.used):>10}  of {format_size(plan.budget_bytes)}",
            f"streamed in each pass: {self._streamed}",
            f"lower bound: {whole_mib(bound.budget_bytes)} ({bound.gives_up})",
        ]
        if self.keeping is not None:
            speed = f"{self.keeping.expected.tokens_per_second:.2f} tok/s"
            found.append(f"drafting keeps {KEPT:.0%} of its speed from {whole_mib(self.keeping.budget_bytes)} on ({speed})")
        how = f" with {self.chosen.options}" if self.chosen.options else ""
        held = {"context": "the whole conversation", "speed": "the speed", "memory": "the least memory"}[self.fit]
        reached = f"about {self.chosen.expected.tokens_per_second:.2f} tok/s"
        run = f"--memory {whole_mib(plan.budget_bytes).replace(' ', '')} --context {plan.context}"
        found.append(f"held: {held}: {run}{how}, {reached}")
        return [*found, "given up in this order, each with the smallest budget that it needs:", *self._table(), *self.notes]

    def _table(self) -> list[str]:
        """A line for each step: its budget, its speed, and what it costs beside the step before. What is not exact stands last,
        beside the step in whose place it comes."""
        befores = [None, *self.steps]
        found = [_line(step, before) for step, before in zip(self.steps, befores, strict=False)]
        if self.inexact is not None:
            found += ["only where you ask for it:", _line(self.inexact, self.exact_steps[-1])]
        return found


def _line(step: Concession, before: Concession | None) -> str:
    """What a step needs, gives, and costs beside the one before."""
    speed = step.expected.tokens_per_second
    cost, said = "", ""
    if before is not None:
        cost = f"{speed - before.expected.tokens_per_second:+.2f}"
        # What a run chooses by itself in this memory; what is asked for stands in what is given up.
        said = f" (copy of the weights: {step.plan.copy})" if not step.options and step.plan.copy != before.plan.copy else ""
    return f"{whole_mib(step.budget_bytes):>11}  {speed:8.2f} tok/s  {cost:>8}  {step.gives_up}{said}"
