"""A device that is not there: its two queues of work are done in an order that chance decides, from any thread."""

import functools
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def alone(method: F) -> F:
    """One thread at a time."""

    @functools.wraps(method)
    def locked(self: Any, *given: Any, **options: Any) -> Any:
        with self.lock:
            return method(self, *given, **options)

    return locked  # type: ignore[return-value]


@dataclass
class Event:
    at: int | None = None
    seconds: float = 0.0  # of a real clock, where that means something


@dataclass
class Stream:
    """Work not done yet; each piece says whether it could be done now."""

    work: deque[Callable[[], bool]] = field(default_factory=deque)

    def then(self, action: Callable[[], None]) -> None:
        self.work.append(lambda: (action(), True)[1])


class SimulatedDevice:
    """Streams that run at their own pace: at every question, some of their work is done, in an order chance decides."""

    def __init__(self, seed: int, refuse_after: int = 1000) -> None:
        self.lock = threading.RLock()
        self.chance = random.Random(seed)
        self.compute, self.copies = Stream(), Stream()
        self.clock = 0
        self.copied = 0
        self.registered: list[int] = []
        self.refuse_after = refuse_after

    def register(self, memory: Tensor) -> str:
        if len(self.registered) == self.refuse_after:
            return "refused to pin"
        self.registered.append(memory.data_ptr())
        return ""

    def unregister(self, memory: Tensor) -> None:
        self.registered.remove(memory.data_ptr())

    def copy_stream(self) -> Stream:
        return self.copies

    def current_stream(self) -> Stream:
        return self.compute

    @alone
    def record(self, stream: Stream) -> Event:
        event = Event()

        def happen() -> None:
            event.at = self.clock

        stream.then(happen)
        return event

    @alone
    def await_event(self, stream: Stream, event: Event) -> None:
        stream.work.append(lambda: event.at is not None)

    @alone
    def copy(self, stream: Stream, source: Tensor, into: Tensor) -> None:
        self.copied += source.numel() * source.itemsize
        source, into = source.reshape(-1), into.view(-1)
        half = len(source) // 2  # a reader may come between the two
        stream.then(lambda: into[:half].copy_(source[:half]))
        stream.then(lambda: into[half:].copy_(source[half:]))
        self.advance(self.chance.randint(0, 9))

    @alone
    def happened(self, event: Event) -> bool:
        self.advance(self.chance.randint(0, 2))
        return event.at is not None

    @alone
    def block_until(self, event: Event) -> None:
        while event.at is None:
            self.step([self.compute, self.copies])

    def seconds_between(self, first: Event, last: Event) -> float:
        assert first.at is not None and last.at is not None
        return float(last.at - first.at)

    @alone
    def finish(self, stream: Stream) -> None:
        while stream.work:
            self.step([self.compute, self.copies])

    @alone
    def advance(self, steps: int) -> None:
        favourite = self.chance.choice([[self.compute], [self.copies], [self.compute, self.copies]])
        for _ in range(steps):
            if any(stream.work for stream in favourite):
                self.step(favourite, may_stall=True)

    def step(self, streams: Sequence[Stream], may_stall: bool = False) -> None:
        self.clock += 1
        for stream in self.chance.sample(list(streams), len(streams)):
            if stream.work and stream.work[0]():
                stream.work.popleft()
                return
        assert may_stall, "the streams wait for each other"
