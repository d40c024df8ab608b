"""One forward at a time is at work on each device; pieces of a pass come in their order, and whole ones whenever it is free. On a
device with memory of its own each goes on once its work is done, and nothing is brought along twice."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from understudy.devices.processor import Processor
from understudy.models.several_devices.lanes import LaneLost
from understudy.models.several_devices.walk import Occupancy, PassLeft, PieceTurns, Walk

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


class Late(FakeDevice):
    """Notes what was asked of it and is not done, and what it brought elsewhere."""

    def __init__(self, number: int) -> None:
        super().__init__(seed=number, triton=False, name=f"fake:{number}")
        self.undone = 0
        self.finished = 0
        self.brought: list[int] = []

    def finish(self) -> None:
        super().finish()
        self.undone = 0
        self.finished += 1

    def sent(self, sources: Sequence[Tensor], where: str) -> list[Tensor]:
        assert not self.undone, "it is not made yet"
        self.brought.append(len(sources))
        return super().sent(sources, where)


def test_a_forward_beside_others_goes_on_once_its_work_is_done() -> None:
    first, second = devices = [Late(0), Late(1)]
    occupancy = Occupancy()
    ahead, behind = (Walk(devices, occupancy, beside=True) for _ in range(2))
    seen: list[int] = []

    def follow() -> None:
        with behind.under_way():
            seen.append(first.undone)
            behind.enter(1)
            seen.append(second.undone)

    with ThreadPoolExecutor(1) as pool, ahead.under_way():
        first.undone = 1
        follows = pool.submit(follow)
        time.sleep(0.02)
        assert not seen
        ahead.enter(1)
        second.undone = 1
        ahead.enter(2)
        ahead.leave()
        follows.result(timeout=20)
    assert seen == [0, 0] and first.finished == 3 and second.finished == 2 and not occupancy.busy
    alone = Walk(devices, occupancy)
    with alone.under_way():
        alone.enter(1)
    assert first.finished == 3, "nobody waits for one that is alone"


def test_what_each_layer_is_given_is_brought_once() -> None:
    first, second = devices = [Late(0), Late(1)]
    walk, states, turns = Walk(devices, Occupancy(), beside=True), torch.arange(6.0).view(1, 2, 3), torch.ones(())
    with walk.under_way():
        walk.enter(1)
        (there,) = walk.carried([states], "cpu", fresh=True)
        brought = walk.carried([turns, turns], "cpu", fresh=True, again=True)
        assert first.brought == [1, 1] and torch.equal(there, states) and there is not states and brought[0] is brought[1]
        # The next layer: what the one before gave is here, and so is what was brought.
        assert walk.carried([there], "cpu", fresh=False) == [there]
        assert walk.carried([turns], "cpu", fresh=False, again=True)[0] is brought[0] and first.brought == [1, 1]
        walk.enter(2)
        assert walk.carried([turns], "cpu", fresh=True)[0] is not brought[0] and first.brought == [1, 1, 1]
    alone = Walk(devices, Occupancy())
    with alone.under_way():
        assert alone.carried([states], "cpu", fresh=True)[0] is states and len(first.brought) == 3 and not second.brought


def test_a_device_that_is_lost_when_its_work_is_waited_for_is_named() -> None:
    devices = [Late(0), Late(1)]

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    devices[1].finish = broken  # type: ignore[method-assign]
    occupancy = Occupancy()
    walk = Walk(devices, occupancy, beside=True)
    with pytest.raises(LaneLost, match=r"^fake:1 stopped working"), walk.under_way():
        walk.enter(1)
        walk.enter(2)
    assert not occupancy.busy
    with pytest.raises(ZeroDivisionError), walk.under_way():
        walk.enter(1)
        raise ZeroDivisionError
    assert not occupancy.busy, "who fails waits for nothing"
