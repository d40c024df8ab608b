"""A device that is lost takes nothing with it: requests end with its name, and all devices' memory is given back."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.fake_device import FakeDevice
from tests.several_devices import GREEDY, PROMPTS, four_nodes, llm, prepared, simulated
from understudy.errors import UnderstudyError
from understudy.models.several_devices.lanes import LaneLost
from understudy.models.several_devices.split import give_back


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("split"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    return simulated(monkeypatch)


@pytest.mark.parametrize(("split", "method"), [("blocks", "none"), ("blocks", "substitute"), ("stages", "substitute")])
def test_a_lost_lane_ends_requests_and_the_others_memory_is_given_back(
    store: Path, fakes: list[FakeDevice], monkeypatch: pytest.MonkeyPatch, split: str, method: str
) -> None:
    with llm(store / "raw", "fake:0,fake:1,fake:2", split, method=method, resident="auto") as many:
        assert many.generate(PROMPTS, GREEDY)[0].stats.accepted > 0 or method == "none"
        lost = many.model.lanes[0]
        assert lost.supply is not None and all(device.held > 1 << 16 for device in fakes)

        def broken(*_: Any) -> Any:
            raise RuntimeError("CUDA error: unspecified launch failure\nmore lines")

        monkeypatch.setattr(lost.supply, "multiply", broken)
        line = r"^fake:1 stopped working in the middle of a request \(CUDA error: unspecified launch failure\): load the model"
        for prompts in ([[9, 9, 4]], PROMPTS):
            with pytest.raises(LaneLost, match=line):
                many.generate(prompts, GREEDY)
        assert many.model.lost and not [lane for lane in many.model.lanes if lane.supply or lane.ring]
        gc.collect()
        assert [device.held for device in fakes] == [0, 0, 0]
        assert many.model.cache.nbytes > 0 and {state.keys.device.type for state in many.model.cache.layers} == {"meta"}


@pytest.mark.parametrize("split", ["blocks", "stages"])
def test_the_first_device_that_is_lost_gives_back_the_others_memory_too(
    store: Path, fakes: list[FakeDevice], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    with llm(store / "raw", "fake:0,fake:1", split, resident="auto") as many:
        many.generate(PROMPTS, GREEDY)

        def broken(*_: Any) -> Any:
            raise RuntimeError("CUDA error: unspecified launch failure")

        monkeypatch.setattr(many.model.supply.first, "multiply", broken)  # type: ignore[union-attr]
        with pytest.raises(UnderstudyError, match=r"^fake:0 stopped working in the middle of a request"):
            many.generate([[9, 9, 4]], GREEDY)
        gc.collect()
        assert many.model.lost and [device.held for device in fakes] == [0, 0]


def test_processors_give_back_what_their_stages_held(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a stage held is gone, though the model itself is still there."""
    four_nodes(monkeypatch)
    with llm(store / "delta", "cpu:0,cpu:1", "stages", resident="auto") as many:
        many.generate(PROMPTS, GREEDY)
        stage = many.model.lanes[0].stage
        assert stage is not None
        held = [weakref.ref(tensor) for tensor in stage.residents.values()]
        held += [weakref.ref(tensor) for copy in stage.substitutes for tensor in copy.values()]
        assert len(held) > 10
        del stage
        give_back(many.model, RuntimeError("lost"))
        gc.collect()
        assert not [ref for ref in held if ref() is not None]
