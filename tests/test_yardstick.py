"""Arithmetic is measured once for each machine, and what cannot be read is measured again."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.plan.test_rounds import PLAN
from understudy import yardstick
from understudy.plan.rounds import Arithmetic

FOUND = Arithmetic(*map(float, range(1, 15)))


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(yardstick, "measure", lambda: taken.append(1) or FOUND)
    assert yardstick.measured(tmp_path) == yardstick.measured(tmp_path) == FOUND and len(taken) == 1
    assert yardstick.measured(tmp_path, again=True) == FOUND and len(taken) == 2
    for damaged in ("{", "[]", json.dumps({"x": {"copy_rate": 1}})):
        (tmp_path / yardstick.FILE).write_text(damaged)
        assert yardstick.measured(tmp_path) == FOUND
    assert len(taken) == 5


def test_the_built_in_model_tells_what_a_layer_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(yardstick, "SAMPLE", (256, 256))
    monkeypatch.setattr(yardstick, "TOKENS", 8)
    seen: dict[str, float] = {}
    # differences of a few tokens' seconds: on a busy machine one may come out as nothing, but not each time
    for _ in range(6):
        found = yardstick.measure()
        assert min(found.copy_rate, found.rebuilt_rate, found.plain_rate) > 1e6 and min(asdict(found).values()) >= 0
        seen = {name: max(value, seen.get(name, 0.0)) for name, value in asdict(found).items()}
        if min(seen[name] for name in ("level_layer", "pass_layer", "part_seconds")) > 0:
            return
    pytest.fail(f"rounds of the built-in model tell nothing of a layer: {seen}")


def test_what_rounds_take_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Arithmetic(
        copy_rate=1e9, copy_node_seconds=1e-11, rebuilt_rate=1e9, plain_rate=2e9, node_seconds=1e-12,
        level_layer=0.01, level_node=0.002, level_rest=0.03, pass_layer=0.02, pass_node=0.003, pass_tile=0.01,
        part_seconds=0.004, round_rest=0.05, head_level=0.006,
    )  # fmt: skip
    in_memory = replace(PLAN, streamed_bytes=0)

    def rounds(method: str, resident: str) -> yardstick._Rounds:
        plan = replace(PLAN, streamed_parts=40) if resident == "none" else in_memory
        shapes = {"none": (1.0, 0.0), "substitute": (50.0, 5.0), "eagle:demo": (9.0, 4.0)}
        shapes |= {f"substitute:width={width},depth=6": (1.0 + 6 * width, width) for width in yardstick.WIDTHS}
        nodes, level_nodes = shapes[method]
        rest = 0.0 if "width" in method else known.level_rest
        level = replace(known, level_rest=rest).level_seconds(plan, level_nodes)
        if method == "eagle:demo":
            plan = replace(plan, items={**plan.items, "draft head": 10**6}, draft_level_bytes=10**5)
            level = known.head_seconds(11 * 10**5, level_nodes)
        return yardstick._Rounds(plan, nodes, level_nodes, level, known.busy_seconds(plan, nodes), known.round_rest)

    monkeypatch.setattr(yardstick._Rounds, "of", rounds)
    products = Arithmetic.of_bandwidth(1e9)
    names = ("copy_rate", "copy_node_seconds", "rebuilt_rate", "plain_rate", "node_seconds")
    products = replace(products, **{name: getattr(known, name) for name in names})
    assert asdict(yardstick._beside(products)) == pytest.approx(asdict(known))
