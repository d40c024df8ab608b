"""Draft levels as graphs, on a device that is not there: text is plain text, and what cannot be recorded is said and goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice
from tests.fake_graphs import FakeGraphs
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices.graphs import CaptureError, failure
from understudy.drafters.device_search import TensorSearch
from understudy.drafters.launch import DeviceTreeSearch
from understudy.errors import StoreError
from understudy.models.embedding import EmbeddingTable
from understudy.plan.demand import SEARCH

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit  # type: ignore[untyped-decorator]
def _add(numbers: Any, total: Any) -> None:
    at = tl.arange(0, 16)
    tl.store(total + at, tl.load(total + at) + tl.load(numbers + at))


PROMPTS = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9], [1, 2]]
GREEDY = SamplingParams(max_new_tokens=5, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=5, ignore_eos=True, temperature=0.9, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "model"
    save(path, "qwen2", torch.float32, hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    return path


def llm(model: Path, **options: Any) -> LLM:
    asked = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 128, "rows": 3, "device": "fake"}
    return LLM(model, **{**asked, **options})


def plain(model: Path, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    with llm(model, method="none", device="cpu") as cpu:
        return [done.token_ids for done in cpu.generate(prompts, params)]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_text_drafted_by_graphs_is_plain_text_and_new_requests_record_nothing(
    model: Path, opened: list[FakeDevice], params: SamplingParams
) -> None:
    other = SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=params.temperature and 0.6, top_k=40, seed=11)
    with llm(model, method="substitute:width=2,depth=3") as fake:
        graphs = opened[-1].recorder
        done = fake.generate(PROMPTS[:1], params)
        assert graphs.captured > 0 and done[0].stats.accepted > 0
        first = graphs.captured, graphs.replayed
        assert all(isinstance(table, EmbeddingTable) for table in fake.model.lookup.tables) and fake.plan.items["draft levels"] > 0
        again = fake.generate([[40, 41, 42, 43, 44]], other)
        assert graphs.captured == first[0] and graphs.replayed > first[1] > 0
    assert [c.token_ids for c in done] == plain(model, PROMPTS[:1], params)
    assert [c.token_ids for c in again] == plain(model, [[40, 41, 42, 43, 44]], other)


def test_a_flipped_bit_in_a_table_on_the_device_is_found_when_it_is_loaded(model: Path, opened: list[FakeDevice]) -> None:
    with llm(model) as fake:
        table = fake.store.looked_up[0]
        file = fake.store.file(table.file)
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: table.offset + 100] + bytes([whole[table.offset + 100] ^ 4]) + whole[table.offset + 101 :])
        with pytest.raises(StoreError, match=f"{table.file} is damaged"):
            llm(model)
    finally:
        file.write_bytes(whole)


def test_rows_draft_in_the_same_levels(model: Path, opened: list[FakeDevice]) -> None:
    with llm(model) as fake:
        done = fake.generate(PROMPTS, GREEDY)
        search = fake.engine.drafter.search
        assert isinstance(search, DeviceTreeSearch) and search.replayed > 0
        assert any(kind.rows == 3 for kind in search.graphs) and sum(c.stats.accepted for c in done) > 0
        assert isinstance(search.tensors, TensorSearch)
        kept = (search.tensors.tails, search.tensors.state.memory)
        held = sum(tensor.untyped_storage().nbytes() for tensor in kept)
        assert held <= SEARCH * 4, "as planned for three rows and the one to spare"
    assert [c.token_ids for c in done] == plain(model, PROMPTS, GREEDY)


def test_no_memory_for_a_graph_is_said_and_drafts_go_on(
    model: Path, opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    with llm(model, method="substitute:width=2,depth=2") as fake:
        opened[-1].recorder.full = 1
        with pytest.warns(RuntimeWarning, match=r"^drafts run without CUDA graphs, which is slower \(CUDA out of memory\)$"):
            done = fake.generate(PROMPTS[:1], GREEDY)
        assert opened[-1].recorder.captured == opened[-1].recorder.replayed == 0 and done[0].stats.accepted > 0
        assert any("without CUDA graphs" in note for note in fake.model.plan.notes)
    assert done[0].token_ids == plain(model, PROMPTS[:1], GREEDY)[0]


def test_without_triton_nothing_is_recorded(
    model: Path, opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: opened.append(FakeDevice(triton=False)) or opened[-1])
    with llm(model) as fake:
        done = fake.generate(PROMPTS[:1], GREEDY)
        assert opened[-1].recorder.captured == 0 and done[0].stats.accepted > 0
        assert any("slower" in note for note in fake.plan.notes)
    assert done[0].token_ids == plain(model, PROMPTS[:1], GREEDY)[0]


def test_what_is_recorded_must_ask_for_nothing_and_bakes_in_what_python_saw() -> None:
    graphs, total, step = FakeGraphs(), torch.zeros(3), torch.ones(3)
    factor = [2.0]

    def work() -> None:
        total.add_(step * factor[0])

    graph = graphs.capture(work)
    assert total.tolist() == [2.0] * 3  # done once; recording changed nothing
    factor[0] = 100.0
    step.fill_(5.0)
    graph.replay()
    assert total.tolist() == [12.0] * 3 and graphs.replayed == 1
    for asks in (lambda: total.sum().item(), lambda: total[total > 1], lambda: total.nonzero(), lambda: torch.unique(total)):
        with pytest.raises(CaptureError, match="operation not permitted when stream is capturing"):
            graphs.capture(asks)


def test_of_errors_that_follow_from_each_other_the_first_is_said() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert failure(error) == "drafts run without CUDA graphs, which is slower (CUDA out of memory)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_launches_are_counted_and_kernels_of_our_own_are_recorded_with_the_rest() -> None:
    graphs, numbers, total = FakeGraphs(), torch.arange(16, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)

    def work() -> None:
        doubled = torch.empty(16, dtype=torch.int32)
        torch.mul(numbers.view(4, 4).view(-1), 2, out=doubled)
        _add[(1,)](doubled, total)

    graph = graphs.capture(work)
    assert graph.launches == ["mul", "_add"] and torch.equal(total, 2 * numbers)
    graph.replay()
    assert torch.equal(total, 4 * numbers)
