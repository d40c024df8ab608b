"""The figures of a request: what front ends show, and the JSON that scripts rely on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .advance import Advance
from .engine import Engine
from .models.model import Model


@dataclass(frozen=True)
class Stats:
    """The figures of one request. What a pass took is shared out among the requests it served (see `Share`)."""

    # The drafter's name and options.
    method: str
    new_tokens: int
    # Passes after the first token.
    rounds: int
    # Tokens per round, the bonus token included (the acceptance length).
    mean_accepted: float
    # Nodes drafted, and how many of them the target accepted.
    drafted: int
    accepted: int
    # The tokens after the first pass that gave any, over `decode_seconds`.
    tokens_per_second: float
    # From the first token to the last.
    decode_seconds: float
    # From the request to its first token, waiting for a place included.
    ttft_seconds: float
    # This request's share of the exact weights that passes brought, and of the seconds in which the link was busy.
    bytes_streamed: int
    stream_seconds: float
    # The link's speed while it was busy.
    link_bytes_per_second: float
    # The most that the link allows at this acceptance length A: A * (link bytes per second) / (bytes per pass). None when
    # nothing is streamed.
    limit_tokens_per_second: float | None
    # The peak of the whole process, or of the device's memory.
    peak_memory_bytes: int
    # This request's share of the time after its first token: drafting, waiting for weights, everything else in passes.
    draft_seconds: float
    wait_seconds: float
    compute_seconds: float
    prompt_tokens: int
    plan: dict[str, Any] = field(default_factory=dict)
    # The seed of a sampled text, drawn where none was given; None for greedy text.
    seed: int | None = None
    # Tokens that the cache held and that were read again, since recurrent layers and windows cannot go back to every length.
    read_again: int = 0
    # Tokens of the prompt that were not read, since the cache held them already.
    cached_tokens: int = 0
    # Levels of its drafts that passes waited for, over `rounds`.
    levels_per_round: float = 0.0
    # Nodes that each of these levels ran, wrong guesses among them.
    nodes_per_level: float = 0.0
    # Levels that were run ahead, beside passes, and how many of these drafts the next one went on from or dropped.
    ahead_levels: int = 0
    ahead_used: int = 0
    ahead_dropped: int = 0
    # Tokens that the text or a head suggested in front of the proposer, by that source, and those that the proposer said too.
    suggested: dict[str, int] = field(default_factory=dict)
    agreed: dict[str, int] = field(default_factory=dict)

    @property
    def levels(self) -> float:
        """Levels of all its drafts that passes waited for."""
        return self.levels_per_round * self.rounds

    @property
    def level_nodes(self) -> float:
        """Nodes that those levels ran."""
        return self.nodes_per_level * self.levels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Counters:
    """Counts that only grow, read at one moment: bytes and seconds since the model was loaded."""

    # Exact weights that passes used, and that the link brought.
    used: int
    read: int
    # Seconds in which a pass waited for the link, and in which the link was busy.
    wait: float
    busy: float
    # Seconds of drafting, and of passes of the target, waiting included.
    draft: float
    verify: float

    @classmethod
    def of(cls, model: Model, engine: Engine) -> Counters:
        # Links of several devices work and wait side by side.
        rings = [ring.stats for ring in model.rings]
        return cls(
            used=model.supply.bytes_used,
            read=sum(ring.bytes_read for ring in rings),
            wait=max((ring.wait_seconds for ring in rings), default=0.0),
            busy=max((ring.busy_seconds for ring in rings), default=0.0),
            draft=engine.clock.draft,
            verify=engine.clock.verify,
        )

    def since(self, before: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


@dataclass
class Share:
    """One request's share of the bytes and seconds of passes. The shares of a pass add up to the pass.

    All requests of a pass use the same sweep of the weights, so bytes and waiting are shared equally; the time of drafting is
    shared by those that were drafted for, and that of the arithmetic by the nodes of each."""

    used: float = 0.0
    read: float = 0.0
    wait: float = 0.0
    busy: float = 0.0
    draft: float = 0.0
    compute: float = 0.0

    def add(self, other: Share) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def split(cls, taken: Counters, advances: Sequence[Advance]) -> list[Share]:
        """The share of each of `advances` in a pass that took `taken`."""
        equal = 1 / len(advances)
        drafts = sum(not advance.reads for advance in advances)
        nodes = sum(advance.nodes for advance in advances)
        return [
            cls(
                used=taken.used * equal,
                read=taken.read * equal,
                wait=taken.wait * equal,
                busy=taken.busy * equal,
                draft=0.0 if advance.reads else taken.draft / drafts,
                compute=(taken.verify - taken.wait) * advance.nodes / nodes,
            )
            for advance in advances
        ]


class RequestMeter:
    """Follows one request from its start to its end; `stats()` may be asked at any time."""

    def __init__(self, model: Model, method: str, prompt_tokens: int, seed: int | None = None):
        self.model = model
        self.method = method
        self.prompt_tokens = prompt_tokens
        # The seed of sampled text; None for greedy text.
        self.seed = seed
        self.start = time.perf_counter()
        # What plans tell does not change.
        self.plan = model.plan.to_dict()
        # Seconds since `start`: when it got a cache row, at the first token, and at the latest pass.
        self.queued: float | None = None
        self.first: float | None = None
        self.latest = 0.0
        # The shares of the whole request, and of the time after its first token.
        self.whole = Share()
        self.decode = Share()
        self.tokens = 0
        self.first_tokens = 0
        self.rounds = 0
        self.drafted = 0
        self.accepted = 0
        self.read_again = 0
        self.cached_tokens = 0
        self.levels = self.level_nodes = 0
        self.ahead_levels = self.ahead_used = self.ahead_dropped = 0
        self.suggested: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()

    def begin(self) -> None:
        """The request has a cache row now: it waits no longer."""
        self.queued = time.perf_counter() - self.start

    def count(self, advance: Advance, share: Share) -> None:
        """One pass is over. Passes up to the first token read the prompt, and do not count as rounds."""
        self.latest = time.perf_counter() - self.start
        self.whole.add(share)
        self.tokens += len(advance.tokens)
        self.drafted += advance.drafted
        self.accepted += advance.accepted
        self.levels += advance.counts.levels
        self.level_nodes += advance.counts.nodes
        self.ahead_levels += advance.counts.ahead_levels
        self.ahead_used += advance.counts.ahead_used
        self.ahead_dropped += advance.counts.ahead_dropped
        self.suggested.update(advance.counts.suggested)
        self.agreed.update(advance.counts.agreed)
        self.read_again = advance.sequence.read_again
        self.cached_tokens = advance.sequence.reused
        if self.first is not None:
            self.decode.add(share)
            self.rounds += 1
        elif advance.tokens:
            self.first = self.latest
            self.first_tokens = len(advance.tokens)

    def stats(self) -> Stats:
        first = self.latest if self.first is None else self.first
        seconds = self.latest - first
        later = self.tokens - self.first_tokens
        mean = later / self.rounds if self.rounds else float(self.tokens)
        rate = later / seconds if later and seconds else self.tokens / max(first, 1e-9)
        plan = self.model.plan
        limit = None if plan.plain_tokens_per_second is None else mean * plan.plain_tokens_per_second
        if limit is not None and plan.mixture is not None and self.decode.used:
            # What experts are used is seen, not planned.
            limit = later * plan.link_bytes_per_second / self.decode.used
        return Stats(
            method=self.method,
            new_tokens=self.tokens,
            rounds=self.rounds,
            mean_accepted=mean,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens_per_second=rate,
            decode_seconds=seconds,
            ttft_seconds=first,
            bytes_streamed=round(self.whole.used),
            stream_seconds=self.whole.busy,
            link_bytes_per_second=self.whole.read / self.whole.busy if self.whole.busy else 0.0,
            limit_tokens_per_second=limit,
            peak_memory_bytes=self.model.device.peak_bytes(),
            draft_seconds=self.decode.draft,
            wait_seconds=self.decode.wait,
            compute_seconds=self.decode.compute,
            prompt_tokens=self.prompt_tokens,
            plan=self.plan,
            seed=self.seed,
            read_again=self.read_again,
            cached_tokens=self.cached_tokens,
            levels_per_round=self.levels / self.rounds if self.rounds else 0.0,
            nodes_per_level=self.level_nodes / self.levels if self.levels else 0.0,
            ahead_levels=self.ahead_levels,
            ahead_used=self.ahead_used,
            ahead_dropped=self.ahead_dropped,
            suggested=dict(self.suggested),
            agreed=dict(self.agreed),
        )
