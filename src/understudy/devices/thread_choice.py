"""Chooses how many threads share work, by what the same work took on more or fewer of them.

Threads of one kernel wait for each other. Where other processes want the processors too, one that waits may lose its turn, and
the kernel then lasts some milliseconds longer: on a busy machine fewer threads are faster, often many times. For small work they
are on an idle one. No rule tells that beforehand, so it is tried now and then, for as little as it can cost.

A trial of long work costs most, and long work is slower on all threads only where something disturbs them: then they have less
processor time than there is. Where they have it all, such a trial waits until it is a small share of the time, also one that
shorter work suggests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..kernels import team

# Runs of a trial of fewer threads, and of more: what disturbs many threads does not disturb each run.
FEWER_RUNS, MORE_RUNS = 4, 16
# Seconds after which a trial is over, since long runs are disturbed alike.
LONG = 0.5
# A trial that lost so many runs' time is over.
LOST_RUNS = 3.0
# Runs between two trials at least, and how many times as long they take at least as the last trials lost.
APART = 16
COST = 50.0
# Seconds between two trials at most: what else runs on the machine changes.
LONGEST_APART = 60.0
# How much faster more threads must be.
FASTER = 0.95
# The share of the latest run in what a run is said to take.
LATEST = 0.125
# Runs before the first trial; the first of all may have compiled something.
FIRST_RUNS = 1
# Seconds from which on a run is long.
LONG_RUN = 0.02
# Long runs that have less than this share of their threads' processor time are disturbed: idle machines give 0.75 to 1, since some
# of the work is one thread's; one busy process for each processor leaves 0.33 to 0.55.
DISTURBED = 0.7


@dataclass(frozen=True)
class Threads:
    """How many threads share a kernel, and how many an operation of torch's own."""

    kernels: int
    stock: int


def choices(most: int) -> list[Threads]:
    """From `most` threads for all to one for all: torch's own operations are the first to run alone, since each does little."""
    counts = []
    count = most
    while count > 1:
        counts.append(count)
        count //= 2
    both = [Threads(most, most)] if most > 1 else []
    return [*both, *(Threads(count, 1) for count in counts), Threads(1, 1)]


@dataclass
class _Trial:
    """Runs of another choice."""

    place: int
    runs: int = 0
    seconds: float = 0.0


@dataclass
class SizeChoice:
    """What is chosen for work of one kind and size."""

    options: Sequence[Threads]
    # Which of them is in use when none is tried.
    place: int = 0
    # Runs since the last trial, and seconds of them.
    runs: int = -1
    since: float = 0.0
    # Seconds of a run; 0: none was seen.
    usual: float = 0.0
    # Whether the latest run had too little processor time.
    disturbed: bool = False
    # Seconds that must pass between trials, as they cost something.
    apart: float = 0.0
    # Which of them was tried last: the fewest threads are tried first.
    tried: int = 0
    # Which of them other work found to be faster, since the last trial.
    suggested: int | None = None
    trials: int = 0
    trial: _Trial | None = None

    @property
    def threads(self) -> Threads:
        """On how many threads the next run is."""
        return self.options[self.place if self.trial is None else self.trial.place]

    def record(self, seconds: float, share: float = 0.0) -> None:
        """Learn that the run on `threads` took so long, and had this share of their processor time; 0: none, or nobody knows."""
        if self.trial is not None:
            self._try(self.trial, seconds)
            return
        self.runs += 1
        if not self.runs and not self.trials:
            return
        self.since += seconds
        self.usual = self.usual + LATEST * (seconds - self.usual) if self.usual else seconds
        self._notice(share)
        self._follow()
        if self.trial is None and self.runs >= (APART if self.trials else FIRST_RUNS) and self.since >= self.wait:
            self._begin()

    @property
    def calm(self) -> bool:
        """Whether nothing takes the processor time of long work. A trial of more threads is not delayed where there is some."""
        return self.usual >= LONG_RUN and not self.disturbed and self.threads.kernels == self.options[0].kernels

    @property
    def wait(self) -> float:
        """Seconds that must pass before a trial."""
        return max(self.apart, min(COST * LOST_RUNS * self.usual, LONGEST_APART)) if self.calm else self.apart

    def _notice(self, share: float) -> None:
        """Learn from the share of processor time that a run had. Where it became too little, earlier findings do not hold."""
        before, self.disturbed = self.disturbed, share < DISTURBED
        if self.disturbed and not before and self.usual >= LONG_RUN:
            self.apart = 0.0

    def suggest(self, place: int) -> None:
        """Try this choice next, since other work just found it faster; calm work tries it once it no longer is."""
        if self.trial is None or self.trial.place != place:
            self.suggested = place
            self._follow()

    def _follow(self) -> None:
        """Begin a trial of what was suggested, if this is the time for it."""
        if self.suggested is not None and self.trial is None and not self.calm and self.suggested != self.place:
            self._try_next(self.suggested)

    def _begin(self) -> None:
        """Begin a trial of the next of the other choices, which take turns."""
        others = [place for place in reversed(range(len(self.options))) if place != self.place]
        if not others:
            return
        self.tried = next((place for place in others if place < self.tried), others[0]) if self.trials else others[0]
        self._try_next(self.tried)

    def _try_next(self, place: int) -> None:
        """Begin a trial of this choice with the next run."""
        self.trials += 1
        self.suggested = None
        self.trial = _Trial(place)

    def _try(self, trial: _Trial, seconds: float) -> None:
        trial.runs += 1
        trial.seconds += seconds
        more = trial.place < self.place
        lost = trial.seconds - trial.runs * self.usual
        enough = trial.runs >= (MORE_RUNS if more else FEWER_RUNS) or trial.seconds > LONG
        if not enough and lost < LOST_RUNS * self.usual:
            return
        self.apart = min(COST * max(lost, 0.0), LONGEST_APART)
        self.runs = 0
        self.since = 0.0
        self.trial = None
        mean = trial.seconds / trial.runs
        if mean < self.usual * (FASTER if more else 1.0):
            self.place = trial.place
            self.usual = mean
            # The others are judged anew.
            self._begin()


@dataclass
class ThreadChoice:
    """Chooses for each kind of work, such as a draft level or a pass, and for each size of it on its own.

    What makes one faster on fewer threads is often another process, which all of them feel: it is tried on them next."""

    # Of each kind of work.
    options: Mapping[str, Sequence[Threads]]
    sizes: dict[tuple[str, int], SizeChoice] = field(default_factory=dict)
    # What was found to be faster last.
    found: Threads | None = None
    # Work of several threads is timed at the same time.
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def timed(self, kind: str, nodes: int) -> Iterator[None]:
        """Within it, work of this kind on so many `nodes` is shared by as many threads as are likely to be fastest."""
        # sizes that differ by less than two times are one
        key = kind, nodes.bit_length()
        with self._guard:
            if key not in self.sizes:
                options = self.options[kind]
                self.sizes[key] = SizeChoice(options, _nearest(options, self.found or options[0]))
            choice = self.sizes[key]
            threads = choice.threads
        with team.shared_by(threads.kernels, threads.stock):
            used, start = time.process_time(), time.perf_counter()
            yield
            seconds, used = time.perf_counter() - start, time.process_time() - used
        with self._guard:
            self._learn(choice, seconds, used / (seconds * threads.kernels) if seconds else 1.0)

    def _learn(self, choice: SizeChoice, seconds: float, share: float) -> None:
        """Learn what a run on the threads of `choice` took; others are told where it now has another number of them."""
        place = choice.place
        choice.record(seconds, share)
        if choice.place != place:
            self.found = choice.options[choice.place]
            for other in self.sizes.values():
                other.suggest(_nearest(other.options, self.found))


def _nearest(options: Sequence[Threads], wanted: Threads) -> int:
    """Which of `options`, most threads first, has as many threads as `wanted`, or as few as there are."""
    fits = [option.kernels <= wanted.kernels and option.stock <= wanted.stock for option in options]
    return fits.index(True) if True in fits else len(options) - 1
