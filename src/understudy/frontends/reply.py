"""Steps to the screen: text to stdout as it is decided, the live line out of its way; Ctrl-C keeps what is there."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .live import Live
from .show import now, summary

if TYPE_CHECKING:
    from ..llm import Step
    from ..stats import Stats

CANCELLED = "cancelled"


@dataclass
class Answer:
    """What was generated, whole or cut short."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = CANCELLED
    stats: "Stats | None" = None

    def add(self, step: "Step") -> None:
        self.text += step.text
        self.token_ids += step.token_ids
        self.stats = step.stats
        self.finish_reason = step.finish_reason or CANCELLED

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_dict() if self.stats else {},
        }


def receive(steps: "Iterator[Step]", live: Live, silent: bool = False) -> Answer:
    """Print the text of `steps` (unless `silent`) and return it all; an interrupted stream is a shorter answer."""
    reply = Answer()
    shared = live.shares(sys.stdout)
    try:
        for step in steps:
            reply.add(step)
            live.clear()
            if not silent:
                sys.stdout.write(step.text)
                sys.stdout.flush()
                if shared:
                    live.above(step.text)
            if step.finish_reason is None:
                live.draw(now(step.stats))
    except KeyboardInterrupt:
        reply.finish_reason = CANCELLED
    finally:
        live.end()
    if reply.stats is not None:
        live.say(summary(reply.stats, reply.finish_reason))
    elif reply.finish_reason == CANCELLED:
        live.say("stopped before the first token")
    return reply
