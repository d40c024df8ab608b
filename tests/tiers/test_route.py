"""Which part comes next: a fixed order for ever, and a route that learns what is wanted while the pass runs.

`Asked` stands for routes to come. It names nothing by itself, follows hints, and may name parts on a guess between them."""

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adversaries import ADVERSARIES, Eager, Lazy
from tests.tiers.test_ring import PAGE, STALE, check, extents_of, lengths_of_parts, poisoned, weights
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.models.stream import weights as model_weights
from understudy.tiers.ring import Ring, Slot, smallest_ring
from understudy.tiers.route import FixedRoute, Route

__all__ = ["weights"]  # the fixture


class Asked:
    """Parts come because they were hinted; now and then one that nobody asked for comes before them."""

    fixed = False

    def __init__(self, parts: Sequence[int], guesses: float = 0.0, seed: int = 0) -> None:
        self.parts = tuple(parts)
        self.guesses, self.chance = guesses, random.Random(seed)
        self.hinted: deque[int] = deque()
        self.rewound = 0

    def next(self) -> int | None:
        if not self.hinted:
            return None
        if self.chance.random() < self.guesses:
            return self.chance.choice(self.parts)
        return self.hinted.popleft()

    def hint(self, parts: Sequence[int]) -> None:
        self.hinted.extend(parts)

    def rewind(self) -> None:
        self.hinted.clear()
        self.rewound += 1


def take(ring: Ring, part: int) -> tuple[Slot, int]:
    """The slot of `part`, and how many others were released unread before it."""
    passed = 0
    while (slot := ring.next()).index != part:
        check(slot, ring.tier.extents)
        slot.data.fill_(STALE)
        slot.release()
        passed += 1
    return slot, passed


@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=9, unique=True), steps=st.integers(0, 30))
def test_a_fixed_route_is_its_order_for_ever(order: list[int], steps: int) -> None:
    route: Route = FixedRoute(order)
    assert route.fixed and list(route.parts) == order
    assert [route.next() for _ in range(steps)] == [order[i % len(order)] for i in range(steps)]
    route.hint(order[::-1])
    assert route.next() == order[steps % len(order)]
    route.rewind()
    assert route.next() == order[0]


@pytest.mark.parametrize("name", ADVERSARIES)
@given(
    lengths=lengths_of_parts,
    seed=st.integers(0, 99),
    guesses=st.sampled_from([0.0, 0.3]),
    held=st.integers(0, 2),
    spare=st.integers(0, 8 * PAGE),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_parts_asked_for_on_the_way_are_right_and_no_reader_is_overtaken(
    weights: Path,
    name: str,
    lengths: list[int],
    seed: int,
    guesses: float,
    held: int,
    spare: int,
    data: st.DataObject,
) -> None:
    """Hints come in groups, as a pass learns what it needs; the last `held` parts stay in use while others arrive."""
    extents = extents_of(weights, lengths)
    route = Asked(range(len(lengths)), guesses, seed)
    # parts that come on a guess are behind the held ones, so each keeps its room until the oldest is released
    held = 0 if guesses else held
    ring = Ring(ADVERSARIES[name](extents), route, smallest_ring(lengths, held) + spare, allocate=poisoned)
    groups = data.draw(st.lists(st.lists(st.integers(0, len(lengths) - 1), max_size=6), max_size=5))
    window: deque[Slot] = deque()
    try:
        for number, group in enumerate(groups):
            ring.hint(group)
            for part in group:
                slot, _ = take(ring, part)
                check(slot, extents)
                window.append(slot)
                while len(window) > held:
                    old = window.popleft()
                    check(old, extents)
                    old.data.fill_(STALE)
                    old.release()
            if data.draw(st.booleans(), f"rewind after {number}"):
                ring.hint(range(len(lengths)))
                ring.rewind()
                window.clear()
        for slot in window:
            check(slot, extents)
    finally:
        ring.close()


def test_nothing_is_read_before_a_hint_and_a_hint_starts_it(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 6))
    ring = Ring(tier, Asked(range(6)), 3 * PAGE)
    assert tier.asked == [] and ring.full and ring.at_hand is None
    with pytest.raises(AssertionError, match="names no part"):
        ring.next()
    ring.hint([4, 1, 5, 2])
    assert tier.asked == [4, 1, 5] and ring.at_hand == 4
    ring.next().release()
    assert tier.asked == [4, 1, 5, 2]


def test_what_is_on_its_way_is_not_asked_for_again(weights: Path) -> None:
    tier = Lazy(extents_of(weights, [PAGE] * 6))
    ring = Ring(tier, Asked(range(6)), 2 * PAGE)
    ring.hint([3, 0, 5])
    assert tier.asked == [3, 0], "part 5 waits for room"
    ring.hint([0, 5, 1])
    found = [take(ring, part) for part in (0,)]
    found[0][0].release()
    for part in (5, 1):
        slot, passed = take(ring, part)
        assert passed == 0
        slot.release()
    assert found[0][1] == 1 and tier.asked == [3, 0, 5, 1]


def test_a_rewind_forgets_hints(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 6))
    route = Asked(range(6))
    ring = Ring(tier, route, 2 * PAGE)
    ring.hint([3, 0, 5, 4])
    ring.rewind()
    assert route.rewound == 1 and ring.at_hand is None
    ring.hint([2])
    check(ring.next(), tier.extents)
    assert tier.asked == [3, 0, 2]


@pytest.mark.parametrize("guesses", [0.0, 0.4])
def test_a_model_writes_the_same_text_through_a_route_that_is_asked(
    guesses: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real supply and ring: each Linear hints its parts, and what came on a wrong guess is not used."""
    save(tmp_path / "model", "qwen2", torch.bfloat16)
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    options: dict[str, Any] = {"resident": "none", "memory": "1GiB", "context": 256, "method": "substitute"}
    with LLM(tmp_path / "model", **options) as llm:
        plain = llm.generate([[5, 99, 5, 12]], params)[0]
    monkeypatch.setattr(model_weights, "FixedRoute", lambda order: Asked(order, guesses, seed=1))
    with LLM(tmp_path / "model", **options) as llm:
        asked = llm.generate([[5, 99, 5, 12]], params)[0]
        assert llm.model.ring is not None and isinstance(llm.model.ring.route, Asked)
    assert asked.token_ids == plain.token_ids
    assert asked.stats.bytes_streamed > 0 and asked.stats.accepted > 0
