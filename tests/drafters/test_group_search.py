"""Groups of texts on devices with memory of their own: each has a search, a draft and a pass, and no token changes."""

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, Fixed, Unaided, said
from tests.fake_device import FakeDevice, RowDevice
from tests.several_devices import PROMPTS, llm, prepared, simulated
from tests.test_constrained import mixed
from understudy import LLM, SamplingParams
from understudy.drafters.group_search import GroupSearch
from understudy.drafters.growing_tree import GrowingTree
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.errors import UnderstudyError
from understudy.models.several_devices.walk import Walk
from understudy.plan.widths import of_group
from understudy.sequence import TokenSequence
from understudy.ways import WayChoice

FOUR = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9], [11] * 20, [1, 2, 3, 1, 2]]
LONG = SamplingParams(max_new_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("groups"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    return simulated(monkeypatch, by_rows=True)


@pytest.fixture(scope="module")
def plain(store: Path) -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        simulated(patch, by_rows=True)
        return llm(store / "raw", None, device="fake", method="none", rows=4)


def opened(store: Path, devices: str = "fake:0,fake:1", **options: Any) -> LLM:
    return llm(store / "raw", devices, "stages", **{"resident": "auto", "rows": 4, **options})


def told(model: LLM, prompts: list[list[int]], params: Any) -> list[Any]:
    return [(done.token_ids, done.text, done.finish_reason, done.logprobs) for done in model.generate(prompts, params)]


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that devices sent to others beside other work, and how often one was waited for before a forward left it."""
    found = {"bytes": 0, "waits": 0}
    sent, leave = FakeDevice.sent, Walk.leave

    def sending(device: FakeDevice, sources: Any, where: str) -> Any:
        found["bytes"] += sum(source.numel() * source.itemsize for source in sources)
        return sent(device, sources, where)

    def leaving(walk: Walk) -> None:
        found["waits"] += walk.beside and walk.stop >= 0
        # Other threads come in between.
        time.sleep(0.001 * walk.beside)
        leave(walk)

    monkeypatch.setattr(FakeDevice, "sent", sending)
    monkeypatch.setattr(Walk, "leave", leaving)
    return found


@pytest.mark.parametrize(("devices", "most"), [("fake:0,fake:1", 2), ("fake:0,fake:1,fake:2", 3)])
def test_groups_go_through_the_stages_side_by_side(
    store: Path, plain: LLM, fakes: list[FakeDevice], monkeypatch: pytest.MonkeyPatch, devices: str, most: int
) -> None:
    found = counted(monkeypatch)
    params = [LONG, SamplingParams(max_new_tokens=30, ignore_eos=True, temperature=1.0, seed=4, repetition_penalty=1.1), LONG, LONG]
    wanted = told(plain, FOUR, params)
    with opened(store, devices, rows=8) as many:
        stages, search = many.model.stages, many.engine.drafter.search  # type: ignore[attr-defined]
        assert stages is not None and many.model.target.whole and stages.groups(4) == most and stages.groups(1) == 1
        done = many.generate(FOUR, params)
        assert [(one.token_ids, one.text, one.finish_reason, one.logprobs) for one in done] == wanted
        assert told(many, FOUR, params) == wanted and all(one.stats.accepted > 0 for one in done)
        assert stages.groups_run >= 4 * most and stages.occupancy.most_busy == most and not stages.occupancy.busy
        assert 2 <= len(search.others) <= most and search.together.tensors is not None
        assert found["bytes"] > 10_000 and found["waits"] > 100
        assert many.model.supply.bytes_used == 0 and not many.model.rings, "all of it stays"


def test_any_mix_of_texts_in_groups_is_as_each_alone(store: Path, plain: LLM, fakes: list[FakeDevice]) -> None:
    """Constraints, penalties, stop texts, sampling; texts join and leave between passes."""
    with opened(store, "fake:0,fake:1,fake:2", rows=8) as many:

        @given(st.lists(mixed(), min_size=2, max_size=6))
        @settings(max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
        def same(asked: list[tuple[list[int], SamplingParams]]) -> None:
            prompts, params = [prompt for prompt, _ in asked], [own for _, own in asked]
            assert told(many, prompts, params) == told(plain, prompts, params)

        same()
        assert many.model.stages is not None and many.model.stages.groups_run > 8


def test_weights_that_stream_come_once_for_all_texts(store: Path, plain: LLM, fakes: list[FakeDevice]) -> None:
    with opened(store, resident="none") as many:
        assert many.plan.groups == 1 and all(plan.groups == 1 for plan in many.plan.lanes)
        done = many.generate(FOUR, LONG)
        assert [one.token_ids for one in done] == [one.token_ids for one in plain.generate(FOUR, LONG)]
        assert many.model.stages is not None and many.model.stages.groups_run == 0
        assert all(ring.stats.bytes_read > 0 for ring in many.model.rings) and len(many.model.rings) == 2
        assert isinstance(many.engine.drafter.search, DeviceTreeSearch)  # type: ignore[attr-defined]


def test_what_groups_take_is_planned_and_held(store: Path, fakes: list[FakeDevice]) -> None:
    """What each search keeps is allocated when groups come, and no more than that."""
    with opened(store) as grouped:
        many, plan = grouped.model, grouped.plan
        search = grouped.engine.drafter.search  # type: ignore[attr-defined]
        before = fakes[0].held
        grouped.generate(FOUR, LONG)
        grown, held = fakes[0].held - before, plan.items["draft levels"]
        assert plan.groups == 2 == many.groups and len(search.others) == 2
        some, width = of_group(search.widest, 4)
        assert [(one.rows, one.widest) for one in search.others] == [(some, width)] * 2 and some == 2
        assert 0 < grown < 2 * (some + 1) * (900 << 10)
        mine = sum(one.tensors.state.memory.nbytes + one.tensors.tails.nbytes for one in (search.together, *search.others))
        assert 0.3 * held < mine < held
    with opened(store, rows=1) as alone:
        assert alone.plan.groups == 1 and alone.plan.items["draft levels"] < held
    with opened(store, memory=f"{(plan.used - plan.items['ring']) * 1.021:.0f}") as least:
        assert least.plan.groups == 2 and not least.plan.streamed_bytes
    with opened(store, memory=f"{(plan.used - plan.items['ring'] - grown) * 1.02:.0f}") as smaller:
        assert smaller.plan.groups == 1, "groups are left out before weights stream"


@pytest.mark.parametrize("place", [0, 1])
def test_a_lost_device_ends_the_texts_of_all_groups_and_gives_memory_back(
    store: Path, fakes: list[FakeDevice], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    # Groups are never left out: what rounds take on a busy machine says nothing.
    monkeypatch.setattr(WayChoice, "of", lambda choice, kind, several: several)
    with opened(store) as many:
        many.generate(FOUR, LONG)
        stages, attend, once = many.model.stages, RowDevice.attend, threading.Event()
        assert stages is not None and stages.groups_run > 0
        before = stages.groups_run

        def broken(device: RowDevice, *given: Any) -> Any:
            if device is fakes[place] and stages.groups_run > before and not once.is_set():
                once.set()
                raise RuntimeError("CUDA error: unspecified launch failure\nmore lines")
            return attend(device, *given)

        monkeypatch.setattr(RowDevice, "attend", broken)
        line = rf"^fake:{place} stopped working in the middle of a request \(CUDA error: unspecified launch failure\)"
        for prompts in (FOUR, PROMPTS):
            with pytest.raises(UnderstudyError, match=line):
                many.generate(prompts, LONG)
        assert once.is_set() and many.model.lost and not stages.occupancy.busy
        gc.collect()
        assert [device.held for device in fakes] == [0, 0]


@torch.inference_mode()
def test_each_group_has_a_search_and_those_that_are_done_are_used_again() -> None:
    model, policy = Fixed(0, 2.0), DraftPolicy(Limits(CAPACITY, 128))
    device, met = Unaided(), threading.Barrier(2)
    together = DeviceTreeSearch(model, device, policy, said)
    search = GroupSearch(together, lambda rows, level: DeviceTreeSearch(model, device, policy, said, rows, level), policy)
    assert search.widest == together.widest and search.measure(1) > 0
    model.lengths = {0: 5, 1: 9, 2: 7}

    def tree(row: int) -> GrowingTree:
        sequence = TokenSequence(row, [4], limit=20, prompt_length=1)
        return GrowingTree(sequence, model.lengths[row], [4], most_nodes=64, most_levels=9)

    def run(row: int) -> None:
        trees = [tree(row)]
        met.wait(timeout=20)
        search.run(trees)
        assert len(trees[0].tokens) > 1

    policy.split(2)
    for _ in range(2):
        threads = [threading.Thread(target=run, args=(row,)) for row in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1 <= len(search.others) <= 2 and all(one.rows == 2 for one in search.others)
    policy.split(1)
    before = len(search.others)
    search.run([tree(2)])
    assert together.tensors is not None and len(search.others) == before
