"""One forward at a time is at work on each device; pieces of a pass come in their order, and whole ones whenever it is free."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from understudy.devices.processor import Processor
from understudy.models.walk import Occupancy, PassLeft, PieceTurns, Walk

DEVICES = (Processor(1), Processor(1))


def test_devices_are_busy_at_the_same_time_and_each_with_one_forward() -> None:
    occupancy, inside, met = Occupancy(), [0, 0], []
    both = threading.Barrier(2)

    def go() -> None:
        for _ in range(20):
            walk = Walk(DEVICES, occupancy)
            with walk.under_way():
                for stop in range(3):
                    walk.enter(stop)
                    inside[walk.place] += 1
                    met.append(tuple(inside))
                    time.sleep(0.001)
                    assert inside[walk.place] == 1
                    inside[walk.place] -= 1
        both.wait(timeout=20)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(go), pool.submit(go)]:
            done.result()
    assert not occupancy.busy and occupancy.most_busy == 2 and len(met) == 120


def test_a_forward_waits_for_one_that_has_the_device() -> None:
    occupancy = Occupancy()
    ahead, behind = Walk(DEVICES, occupancy), Walk(DEVICES, occupancy)
    ahead.enter(0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(behind.enter, 0)
        time.sleep(0.05)
        assert not waits.done()
        ahead.enter(1)
        waits.result(timeout=20)
    assert occupancy.busy == {0, 1}
    ahead.leave()
    behind.leave()
    assert not occupancy.busy and (ahead.stop, behind.stop) == (-1, -1)


def test_pieces_come_in_their_order() -> None:
    occupancy = Occupancy()
    turns = PieceTurns(3, occupancy)
    second = Walk(DEVICES, occupancy, turns, piece=1)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(second.enter, 0)
        time.sleep(0.05)
        assert not waits.done(), "the device is free, and it is not this piece's turn"
        first = Walk(DEVICES, occupancy, turns, piece=0)
        first.enter(0)
        first.enter(1)
        waits.result(timeout=20)
    first.leave()
    second.leave()


def test_nobody_waits_for_a_piece_that_failed() -> None:
    turns = PieceTurns(2, Occupancy())
    turns.take(0, 0, 0)
    turns.leave()
    with pytest.raises(PassLeft):
        turns.take(0, 1, 0)
