"""What limits a model is what would help most if it took no time; what would help is planned, not guessed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.published import MISTRAL_SMALL_24B
from understudy.diagnosis import WORTH, Diagnosis, diagnose
from understudy.drawable import Drawable, drawable
from understudy.options import Options
from understudy.plan.other_machine import OtherMachine
from understudy.plan.rounds import Arithmetic

# Everything but the disk takes next to no time.
QUICK = Arithmetic.of_bandwidth(1e13)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Drawable:
    directory = tmp_path_factory.mktemp("diagnosed")
    (directory / "config.json").write_text(json.dumps(MISTRAL_SMALL_24B))
    environment = {"UNDERSTUDY_CACHE": str(directory / "cache")}
    machine = OtherMachine.parse("cpu:memory=20GB,disk=1GB/s,bandwidth=60GB/s")
    return drawable(directory, Options.of({"context": 2048}, environment), machine, config_alone=True)


def of(model: Drawable, arithmetic: Arithmetic) -> Diagnosis:
    return diagnose(model.drawn, model.options, arithmetic, model.changeable)


def test_a_slow_link_limits_and_memory_or_a_faster_one_helps(model: Drawable) -> None:
    found = of(model, QUICK)
    assert found.plan.streamed_bytes and found.limits[0].what.startswith("link")
    assert found.limits[0].tokens_per_second > 100 * found.speed
    speeds = {change.what.split(" (")[0]: change.tokens_per_second for change in found.helps}
    assert speeds["twice the link"] > 1.9 * found.speed and speeds["twice the memory"] > 1.5 * found.speed
    assert {"--bits 3", "--bits 2"} <= speeds.keys()
    unchangeable = diagnose(model.drawn, model.options, QUICK, changeable=False)
    assert not any("--bits" in change.what for change in unchangeable.helps)


def test_more_bits_help_where_the_link_is_waited_for_and_they_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_SMALL_24B))

    def helps(memory: str, **options: Any) -> list[str]:
        machine = OtherMachine.parse(f"cpu:memory={memory},disk=1GB/s,bandwidth=60GB/s")
        chosen = Options.of({"context": 2048, **options}, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})
        model = drawable(tmp_path, chosen, machine, config_alone=True)
        found = of(model, QUICK)
        assert all(change.tokens_per_second > found.speed for change in found.helps if change.what == "--bits 6")
        return [change.what for change in found.helps if change.what.startswith("--bits")]

    below = ["--bits mixed:bits=3.5", "--bits 3", "--bits 2"]
    assert helps("28GB", bits=4) == ["--bits 6", *below] and helps("28GB") == ["--bits 4", *below]
    assert helps("20GB", bits=4) == helps("20GB") == below and helps("28GB", bits=4, codec="raw") == below


@pytest.mark.parametrize(
    ("slow", "what"),
    [
        ({"rebuilt_rate": 1e8}, "decoding"),
        ({"rebuilt_rate": 1e8, "plain_rate": 1e8}, "products"),
        ({"pass_layer": 10.0}, "work beside"),
    ],
)
def test_slow_arithmetic_limits(model: Drawable, slow: dict[str, float], what: str) -> None:
    found = of(model, replace(QUICK, **slow))
    assert found.limits[0].what.startswith(what), found.lines()
    assert found.limits[0].tokens_per_second > 2 * found.speed
    faster = next(change for change in found.helps if change.what.startswith("twice the link"))
    assert abs(faster.tokens_per_second / found.speed - 1) < WORTH
    assert any("does not help" in line for line in found.lines())


def test_it_is_said_to_people_and_programs(model: Drawable) -> None:
    found = of(model, QUICK)
    said = found.to_dict()
    assert json.loads(json.dumps(said))["limited_by"] == found.limits[0].what
    assert said["tokens_per_second"] == found.speed and len(said["helps"]) == len(found.helps)
    assert found.lines()[0].startswith("expected") and any(line.startswith("limited by") for line in found.lines())
