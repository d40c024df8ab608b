"""Time counts once however many reads overlap; a throttle slows all threads down together."""

import threading
import time

import pytest

from understudy.tiers.meter import Meter, Throttle


def test_reads_that_overlap_are_busy_once() -> None:
    meter = Meter()
    began = time.perf_counter()
    with meter:
        with meter:
            time.sleep(0.02)
            meter.count(10)
        running = meter.traffic
        meter.count(5)
    ended = time.perf_counter() - began
    time.sleep(0.01)
    traffic = meter.traffic
    assert (traffic.bytes_read, traffic.reads) == (15, 2)
    assert 0.02 <= running.busy_seconds <= traffic.busy_seconds <= ended
    assert meter.traffic.busy_seconds == traffic.busy_seconds, "nothing is under way"


def test_a_throttle_holds_for_all_threads_together() -> None:
    throttle = Throttle(1e6)
    threads = [threading.Thread(target=throttle.await_turn, args=(10_000,)) for _ in range(4)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began >= 0.039


def test_no_limit_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    Throttle(0).await_turn(1 << 60)
