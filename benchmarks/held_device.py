"""Holds plans of a device with memory of its own to what is allocated there: random models and options on a simulated device.

    python benchmarks/held_device.py --configurations 12

The device has no more memory than the budget and refuses what goes beyond it. It counts what this package allocates there by itself
(copy, weights that stay, ring, embedding) and not what torch does (keys and values, activations): this tries the mechanism, and
says nothing of a GPU's own count. All is used as by `held.py`, and one more turn is asked for, which must be refused."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import held

if TYPE_CHECKING:
    from understudy.plan.placement import Plan

sys.path.insert(0, str(Path(__file__).parents[1]))
# Terms of a plan that are allocated by this package itself.
COUNTED = ("substitute", "shared tensors", "draft model", "embedding", "resident weights", "whole weights", "ring")
# Tokens of the longest context: a pass on a simulated device takes long.
LONGEST = 256


def counted(plan: Plan) -> int:
    """Bytes of a plan that the device counts."""
    return sum(plan.items.get(name, 0) for name in COUNTED)


def chosen(chance: random.Random, number: int) -> held.Held:
    """Configuration `number` of `held.py`, as far as a device without Triton has it."""
    one = held.Held.chosen(chance, number, "")
    stays = one.resident if one.resident != "whole" else "residual"
    return replace(one, codec="raw", resident=stays, context=min(one.context, LONGEST))


def run(one: held.Held, made: list[Any]) -> dict[str, Any]:
    """One configuration in its budget. `made`: the devices that were opened, the latest last."""
    from understudy import LLM
    from understudy.errors import UnderstudyError

    options = {**one.options(), "device": "fake"}
    with held.made(one) as store:
        budget = LLM.plan_only(store, **options).least_bytes + one.room * held.MIB
        try:
            with LLM(store, **options, memory=budget) as llm:
                device = made[-1]
                device.capacity = budget
                held.fill(llm)
                planned = counted(llm.plan)
                return {"peak": device.peak, "used": planned, "budget": budget, "refused": held.refusal(llm)}
        except UnderstudyError as error:
            return {"failed": str(error).splitlines()[0][:60], "budget": budget}


def watched() -> list[Any]:
    """Make `fake` a device that keeps its highest count; returns all that will be opened."""
    from tests import fake_device
    from understudy.devices import DEVICES

    class Watched(fake_device.FakeDevice):
        peak = 0

        def arena(self, nbytes: int) -> Any:
            given = super().arena(nbytes)
            self.peak = max(self.peak, self.held)
            return given

    made: list[Any] = []

    def opened() -> Watched:
        made.append(Watched(triton=False))
        return made[-1]

    fake_device.watched = opened  # type: ignore[attr-defined]
    DEVICES["fake"] = "tests.fake_device:watched"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configurations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made, rows = watched(), {}
    chance = random.Random(given.seed)
    for one in [chosen(chance, number) for number in range(given.configurations)]:
        rows[one.name] = run(one, made)
        print(held.summary({one.name: rows[one.name]})[0], flush=True)
    print(held.summary(rows)[-1])


if __name__ == "__main__":
    main()
