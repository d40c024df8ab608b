"""How fast a disk gives up a file, and the block size and thread count that make it so: measured on the file itself.

A link's speed varies by a factor of two with these, and with what else the machine does, so each candidate is measured
in several short turns spread over the probe, and a small lead does not outweigh smaller reads. The bytes go where a
ring's would: into more memory than the processor caches, since into less a disk seems up to a fifth faster."""

import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch

from ..errors import TransferError
from . import DiskProbe
from .file import File
from .memory import ALIGNMENT, arena

MIB = 1 << 20
# (block, threads), at least two threads: one is late whenever the interpreter is busy
CANDIDATES = tuple(
    (block * MIB, threads) for block, threads in ((1, 2), (1, 4), (2, 2), (2, 4), (2, 8), (4, 2), (4, 4), (8, 2))
)
# a faster candidate with larger reads must be this much faster
CLEAR_LEAD = 1.05
# Seconds that a probe takes, where a file is read in less than a few of them the least: what comes in a moment is not worth more.
SECONDS, LEAST_SECONDS, LARGE = 0.8, 0.2, 1 << 30
# Files up to this size are not worth a probe of their own, where another file of the same disk had one.
SMALL = int(LARGE * LEAST_SECONDS / SECONDS)
# bytes of memory that the measured reads fill, over and over
ROOM = 64 * MIB


def measure_disk(
    path: Path, block: int, threads: int, seconds: float, *, start: int = 0, stop: int | None = None
) -> float:
    """Bytes per second of `threads` readers taking the blocks between `start` and `stop` in order, round and round."""
    file = File(path)
    try:
        return _Run(file, _room(), block, threads, start, stop).rate(seconds)
    finally:
        file.close()


def probe_disk(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    seconds: float | None = None,
    candidates: Sequence[tuple[int, int]] = CANDIDATES,
) -> DiskProbe:
    """The candidate (block, threads) that reads this file fastest. A first round drops the slower half.

    seconds: what the probe may take; None: as many as suit the file's size."""
    file = File(path)
    try:
        if seconds is None:
            seconds = min(max(SECONDS * file.size / LARGE, LEAST_SECONDS), SECONDS)
        room = _room()
        runs = {candidate: _Run(file, room, *candidate, start, stop) for candidate in candidates}
        turn = seconds / (2 * len(runs))
        rates = {candidate: run.rate(turn) for candidate, run in runs.items()}
        finalists = sorted(rates, key=lambda candidate: -rates[candidate])[: max(1, len(rates) // 4)]
        turns: dict[tuple[int, int], list[float]] = {candidate: [] for candidate in finalists}
        for _ in range(2):
            for candidate in finalists:
                turns[candidate].append(runs[candidate].rate(seconds / (4 * len(finalists))))
        rates = {candidate: sum(measured) / len(measured) for candidate, measured in turns.items()}
        block, threads = choose(rates)
        return DiskProbe(rates[block, threads], block, threads, file.direct, file.note)
    finally:
        file.close()


def _room() -> memoryview:
    """Memory that was touched before, so that no first touch counts as the disk's time."""
    return arena(ROOM).fill_(1).numpy().data


def choose(rates: dict[tuple[int, int], float]) -> tuple[int, int]:
    """The fastest, unless one with smaller reads (block times threads) is about as fast."""
    enough = max(rates.values()) / CLEAR_LEAD
    return min((candidate for candidate in rates if rates[candidate] >= enough), key=lambda c: (c[0] * c[1], c))


class _Run:
    """Readers of one file with one block size. Each `rate` goes on where the last one stopped."""

    def __init__(self, file: File, room: memoryview, block: int, threads: int, start: int, stop: int | None) -> None:
        self._file = file
        self._room = room
        self._start = start // ALIGNMENT * ALIGNMENT
        stop = file.size if stop is None else min(stop, file.size)
        if stop - self._start < ALIGNMENT:
            raise TransferError(f"{file.path} is too short to measure the disk with: {stop - self._start} bytes.")
        self._block = min(block, (stop - self._start) // ALIGNMENT * ALIGNMENT)
        self._blocks = (stop - self._start) // self._block
        self._threads = threads
        self._next = count()

    def rate(self, seconds: float) -> float:
        """Bytes per second, each reader timed to the end of its own last block: none is charged for the slowest."""
        rates = [0.0] * self._threads
        errors: list[TransferError] = []
        began = time.perf_counter()
        readers = [
            threading.Thread(target=self._read, args=(number, began, began + seconds, rates, errors))
            for number in range(self._threads)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if errors:
            raise errors[0]
        return sum(rates)

    def _read(self, number: int, began: float, until: float, rates: list[float], errors: list[TransferError]) -> None:
        nbytes, now = 0, began
        while now < until and not errors:
            turn = next(self._next)
            at = turn % (len(self._room) // self._block) * self._block
            offset = self._start + turn % self._blocks * self._block
            try:
                self._file.read(offset, [self._room[at : at + self._block]], self._block)
            except TransferError as error:
                errors.append(error)
            nbytes, now = nbytes + self._block, time.perf_counter()
            rates[number] = nbytes / (now - began)


def probe_memory(nbytes: int = 128 * MIB, seconds: float = 0.06) -> float:
    """Bytes per second at which all threads torch uses can read memory that is in no processor's cache."""
    values = arena(nbytes).fill_(1).view(torch.float32)
    best, until = 0.0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < until or best == 0.0:
        values.sum()
        best = max(best, nbytes / (time.perf_counter() - began))
    return best
