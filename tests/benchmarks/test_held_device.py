"""What a simulated device allocates is compared with its plan, and a budget that is too small is counted as a failure."""

import random
from dataclasses import replace

import held
import held_device


def test_one_configuration_holds_and_one_without_room_fails() -> None:
    one = held.Held(64 * 4, 2, 4, 1, 512, 0, 64, 1, 4, "raw", "substitute", "residual", 8)
    made = held_device.watched()
    found = held_device.run(one, made)
    assert 0 < found["peak"] <= found["budget"] and abs(found["peak"] / found["used"] - 1) < 0.1
    assert "64 tokens" in found["refused"] and made[-1].capacity == found["budget"]
    short = held_device.run(replace(one, room=-600), made)
    assert "too small" in short["failed"]


def test_configurations_are_such_as_the_device_has() -> None:
    chance = random.Random(0)
    some = [held_device.chosen(chance, number) for number in range(30)]
    assert {one.codec for one in some} == {"raw"} and "whole" not in {one.resident for one in some}
    assert max(one.context for one in some) == held_device.LONGEST
