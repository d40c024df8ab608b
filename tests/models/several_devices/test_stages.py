"""Devices in stages give the tokens of one, however a pass is cut into pieces and whatever its layers keep."""

import signal
import time
from _thread import interrupt_main
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.fake_device import FakeDevice
from tests.several_devices import GREEDY, PROMPTS, four_nodes, llm, prepared, simulated
from tests.test_constrained import mixed
from tests.tiny import save
from understudy import LLM, Constraint, SamplingParams
from understudy.devices.processor import Processor
from understudy.errors import UnderstudyError, UsageError
from understudy.models.several_devices.stages import Stages
from understudy.models.several_devices.walk import Walk

LONG = [[(7 * place) % 250 for place in range(100)], [5, 6, 7] * 20]
ONE, TWO, MANY = Processor(1), Processor(1), 400


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    four_nodes(monkeypatch)


def tokens(model: LLM, prompts: list[list[int]] = PROMPTS, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [done.token_ids for done in model.generate(prompts, params)]


@pytest.mark.parametrize("method", ["none", "substitute"])
def test_processors_give_the_tokens_of_one(store: Path, nodes: None, method: str) -> None:
    """Streamed by each stage's own ring, and kept, where passes are cut into pieces."""
    with llm(store / "delta", None, method="none") as one:
        plain = [tokens(one), tokens(one, LONG)]
        streamed = one.plan.streamed_bytes
    for devices, resident in (("cpu:0,cpu:1,cpu:2", "none"), ("cpu:1,cpu:0", "auto")):
        with llm(store / "delta", devices, "stages", method=method, resident=resident) as many:
            stages = many.model.stages
            assert stages is not None and stages.layers[0][0] == 0 and stages.layers[-1][1] == 3
            done = many.generate(PROMPTS, GREEDY)
            assert [[one.token_ids for one in done], tokens(many, LONG)] == plain
            assert (done[0].stats.accepted > 0) == (method == "substitute")
            if resident == "none":
                assert len(many.model.rings) == 3 and all(ring.stats.bytes_read > 0 for ring in many.model.rings)
                assert many.plan.streamed_bytes == streamed and many.model.supply.bytes_used % streamed == 0
                assert stages.pieces_run == 0, "weights would come anew for each piece"
            else:
                assert not many.model.rings and stages.pieces_run > 1
            owned = [plan.linears or frozenset() for plan in (many.plan, *many.plan.lanes)]
            assert sorted(index for own in owned for index in own) == list(range(len(many.model.weights.entries)))


def test_a_second_model_drafts_on_the_first_device_alone(store: Path, nodes: None) -> None:
    """It is whole there, whatever stage the first model has."""
    with llm(store / "raw", None, method="none") as one:
        plain = tokens(one)
    with llm(store / "raw", "cpu:0,cpu:1", "stages", resident="auto", method=f"classic:{store / 'model'}") as many:
        done = many.generate(PROMPTS, GREEDY)
        assert [completion.token_ids for completion in done] == plain and done[0].stats.accepted > 0
        assert many.model.stages is not None and many.model.companion is not None and many.model.companion.stages is None


def test_simulated_devices_give_the_tokens_of_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their copies are late and in any order; drafts go from stage to stage."""
    fakes = simulated(monkeypatch)
    with llm(store / "raw", None, device="fake", method="none") as one:
        plain = tokens(one)
    with llm(store / "raw", "fake:0,fake:1,fake:2", "stages") as many:
        done = many.generate(PROMPTS, GREEDY)
        assert [completion.token_ids for completion in done] == plain and done[0].stats.accepted > 0
        assert len(many.model.rings) == 3 and all(device.simulated.copied > 0 for device in fakes[1:])
        # A pass that is left half way is begun anew on all of them.
        many.model.supply.abandon()
        assert tokens(many) == plain


def test_pieces_of_any_size_change_nothing(store: Path, nodes: None) -> None:
    """Texts of any length, sampled or not, drafted for or not, and cuts anywhere, within a tree too."""
    with llm(store / "delta", None, method="none") as one, llm(store / "delta", "cpu:0,cpu:1", "stages", resident="auto") as many:
        stages = many.model.stages
        assert stages is not None

        @given(
            st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=60), min_size=1, max_size=3),
            st.lists(st.integers(1, 40), min_size=1, max_size=6),
            st.sampled_from([0.0, 1.0]),
        )
        @example([list(range(60))], [1], 0.0)  # what is drawn may be cut in few pieces
        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        def same(prompts: list[list[int]], sizes: list[int], temperature: float) -> None:
            def pieces(count: int) -> list[tuple[int, int]]:
                found, start = [], 0
                while start < count:
                    end = min(start + sizes[len(found) % len(sizes)], count)
                    found.append((start, end))
                    start = end
                return found

            params = SamplingParams(max_new_tokens=5, ignore_eos=True, temperature=temperature, seed=3)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stages, "pieces", pieces)
                assert tokens(many, prompts, params) == tokens(one, prompts, params)

        same()
        assert stages.pieces_run > 20


@pytest.mark.parametrize("family", ["qwen3_5_text", "gemma4-e", "gemma3_text", "gemma3n_text"])
def test_layers_that_recur_slide_or_read_each_other(family: str, nodes: None, tmp_path: Path) -> None:
    save(tmp_path / "model", family, torch.bfloat16)
    LLM.prepare(tmp_path / "model", codec="raw", output=tmp_path / "raw")
    with llm(tmp_path / "raw", None, method="none") as one:
        plain = tokens(one, LONG)
    with llm(tmp_path / "raw", "cpu:0,cpu:1", "stages", resident="auto") as many:
        done = many.generate(LONG, GREEDY)
        assert [completion.token_ids for completion in done] == plain and done[0].stats.accepted > 0
        stages, shapes = many.model.stages, many.model.cache.shapes
        assert stages is not None and stages.pieces_run > 1
        first, second = stages.layers
        assert all(shapes[layer].reads is None or shapes[layer].reads >= second[0] for layer in range(*second))  # type: ignore[operator]
        assert first[1] == second[0] > 0
    if family == "gemma4-e":
        with pytest.raises(UsageError, match=r"layers of this model read keys and values of others: they make 3 stages at most"):
            llm(tmp_path / "raw", "cpu:0,cpu:1,cpu:2,cpu:3", "stages")


def test_an_error_in_one_piece_fails_the_pass_and_the_next_one_works(
    store: Path, nodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with llm(store / "delta", "cpu:0,cpu:1", "stages", resident="auto", method="none") as many:
        plain = tokens(many, LONG)
        supply = many.model.lanes[0].supply
        assert supply is not None
        multiply, calls = supply.multiply, []

        def full(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == 9:
                raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return multiply(*given)

        monkeypatch.setattr(supply, "multiply", full)
        with pytest.raises(UnderstudyError, match=r"^The device ran out of memory in this request"):
            many.generate([[9] * 90], GREEDY)
        assert tokens(many, LONG) == plain and len(calls) > 9


def test_pieces_are_as_many_as_take_least_time() -> None:
    stages = Stages([ONE, TWO], [(0, 2), (2, 4)])

    def seconds(count: int) -> float:
        return (2 + count - 1) * (32 + MANY / count)

    assert stages.pieces(MANY) == [(0, MANY)], "nothing is known yet: weights may stream"
    stages.fit(whole=False, step=1, streams=False)
    best = min(range(1, 20), key=seconds)
    assert len(stages.pieces(MANY)) == best > 2
    assert stages.pieces(3) == [(0, 3)]
    stages.fit(whole=False, step=32, streams=False)
    assert all(start % 32 == 0 for start, _ in stages.pieces(MANY)) and stages.pieces(MANY)[-1][1] == MANY
    stages.close()


def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let work at each stage last a while, in which other threads run."""
    enter = Walk.enter

    def slow(walk: Walk, stop: int) -> None:
        came = stop > walk.stop
        enter(walk, stop)
        if came:
            time.sleep(0.002)

    monkeypatch.setattr(Walk, "enter", slow)


def test_groups_of_texts_go_through_the_stages_side_by_side(store: Path, nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled or not, with a grammar or not, drafts of one group run while another is verified, and no token changes."""
    lasting(monkeypatch)
    prompts = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9], [11] * 20, [1, 2, 3, 1, 2]]
    asked = [
        SamplingParams(max_new_tokens=24, ignore_eos=True),
        SamplingParams(max_new_tokens=30, ignore_eos=True, temperature=1.0, seed=4, repetition_penalty=1.1),
        SamplingParams(max_new_tokens=20, constraint=Constraint.regex("[a-f]{8,60}[.]"), logprobs=2),
        SamplingParams(max_new_tokens=9, ignore_eos=True),
    ]

    def said(model: LLM) -> list[Any]:
        return [(done.token_ids, done.logprobs) for done in model.generate(prompts, asked)]

    with llm(store / "delta", None, method="none", rows=4) as one:
        plain = said(one)
    for devices, most in (("cpu:0,cpu:1", 2), ("cpu:0,cpu:1,cpu:2", 3)):
        with llm(store / "delta", devices, "stages", resident="auto", rows=4) as many:
            stages = many.model.stages
            assert stages is not None and stages.groups(4) == most and stages.groups(1) == 1
            done = many.generate(prompts, asked)
            assert [(one.token_ids, one.logprobs) for one in done] == plain
            assert said(many) == plain and sum(one.stats.accepted for one in done) > 0
            assert stages.groups_run >= 2 * most and stages.occupancy.most_busy == most and not stages.occupancy.busy
    with llm(store / "delta", "cpu:0,cpu:1", "stages", resident="none", rows=4) as streamed:
        assert said(streamed) == plain
        assert streamed.model.stages is not None and streamed.model.stages.groups_run == 0, "weights come once for all texts"


def test_any_mix_of_texts_in_groups_is_as_each_alone(store: Path, nodes: None) -> None:
    """Constraints, penalties, stop texts, sampling; texts join and leave between passes."""
    with (
        llm(store / "delta", None, method="none", rows=4) as one,
        llm(store / "delta", "cpu:0,cpu:1,cpu:2", "stages", resident="auto", rows=4) as many,
    ):

        def said(model: LLM, asked: list[tuple[list[int], SamplingParams]]) -> list[Any]:
            done = model.generate([prompt for prompt, _ in asked], [params for _, params in asked])
            return [(each.token_ids, each.text, each.finish_reason, each.logprobs) for each in done]

        @given(st.lists(mixed(), min_size=2, max_size=7))
        @settings(max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
        def same(asked: list[tuple[list[int], SamplingParams]]) -> None:
            assert said(many, asked) == said(one, asked)

        same()
        assert many.model.stages is not None and many.model.stages.groups_run > 8


def test_groups_that_fail_are_told_once_and_later_ones_work(store: Path, nodes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with llm(store / "delta", "cpu:0,cpu:1", "stages", resident="auto") as many:
        plain, stages = tokens(many), many.model.stages
        assert stages is not None and (before := stages.groups_run) > 0
        forward, calls = many.model.draft._forward, []

        def full(level: Any) -> Any:
            calls.append(1)
            if len(calls) == 9:
                raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return forward(level)

        monkeypatch.setattr(many.model.draft, "_forward", full)
        with pytest.raises(UnderstudyError, match=r"^The device ran out of memory in this request"):
            many.generate(PROMPTS, SamplingParams(max_new_tokens=40, ignore_eos=True))
        assert tokens(many) == plain and stages.groups_run > before and not stages.occupancy.busy


def test_an_interrupt_waits_for_all_groups() -> None:
    """What they write would otherwise come after the pass was undone."""
    # A process that was begun in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stages, ended = Stages([ONE, TWO], [(0, 2), (2, 4)]), []

    def work() -> int:
        time.sleep(0.1)
        interrupt_main()
        time.sleep(0.3)
        ended.append(1)
        return 0

    try:
        with pytest.raises(KeyboardInterrupt):
            stages.side_by_side([work, lambda: 1])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [1] and stages.side_by_side([lambda: 1, lambda: 2]) == [1, 2]
    stages.close()


def test_a_device_lost_on_the_way_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = simulated(monkeypatch)
    with llm(store / "raw", "fake:0,fake:1", "stages", method="none", resident="auto") as many:

        def broken(*_: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        assert len(fakes) == 2
        monkeypatch.setattr(FakeDevice, "attend", broken)
        with pytest.raises(UnderstudyError, match=r"^fake:0 stopped working in the middle of a request"):
            many.generate(PROMPTS, GREEDY)
