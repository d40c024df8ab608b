"""Counting what comes through a link and how long it is busy; and a throttle that slows a link down."""

import threading
import time

from . import Traffic


class Meter:
    """`with meter:` around each read, from any thread. Time counts once however many reads overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._since = 0.0
        self._busy = 0.0
        self._bytes = 0
        self._reads = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._under_way == 0:
                self._since = time.perf_counter()
            self._under_way += 1

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self._busy += time.perf_counter() - self._since

    def count(self, nbytes: int) -> None:
        """One read brought `nbytes`."""
        with self._lock:
            self._bytes += nbytes
            self._reads += 1

    @property
    def traffic(self) -> Traffic:
        with self._lock:
            running = time.perf_counter() - self._since if self._under_way else 0.0
            return Traffic(self._bytes, self._reads, self._busy + running)


class Throttle:
    """Lets `bytes_per_second` through in all, however many threads ask; 0 is no limit."""

    def __init__(self, bytes_per_second: float) -> None:
        assert bytes_per_second >= 0, f"a throttle of {bytes_per_second} bytes/s"
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def await_turn(self, nbytes: int) -> None:
        """Return when `nbytes` asked for now would have come through."""
        if self._rate == 0:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + nbytes / self._rate
            until = self._free_at
        time.sleep(max(0.0, until - time.perf_counter()))
