"""A bound model: its passes are timed and leave nothing behind, and an error leaves the next pass as it should be."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.tiny import save
from understudy import LLM
from understudy.errors import UnderstudyError
from understudy.models.model import Model
from understudy.models.target import TILE
from understudy.tree import Nodes, TokenTree

NODES = Nodes.of(TokenTree.chain([5, 99, 12, 7]), 0, 0)
ALL = torch.arange(len(NODES))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(path, "llama", torch.bfloat16)
    return path


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    # For each test its own: one that loses its device gives all memory back.
    with LLM(path, method="none", resident="none", memory="1GiB", context=128, rows=2) as llm:
        yield llm


@pytest.fixture
def model(llm: LLM) -> Model:
    return llm.model  # type: ignore[return-value]


@torch.inference_mode()
def test_a_pass_streams_all_once_and_is_timed(model: Model) -> None:
    before = model.supply.bytes_used
    logits, hidden = model.verify(NODES, ALL)
    assert logits.shape == (4, 256) and hidden is None
    assert model.supply.bytes_used - before == model.plan.streamed_bytes > 0
    assert model.cost.last is not None
    nodes, busy, waited = model.cost.last
    assert nodes == 4 and busy > 0 and waited >= 0
    chosen, _ = model.verify(NODES, ALL[2:], lambda logits, first: logits.argmax(-1) + first)
    assert torch.equal(chosen, logits[2:].argmax(-1))


@torch.inference_mode()
@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), KeyboardInterrupt()])
def test_after_a_pass_that_ended_half_way_the_next_begins_at_the_first_part(
    model: Model, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = model.verify(NODES, ALL)
    multiply, calls = model.target.multiply, []

    def failing(index: int, tiles: list[Tensor], rows: int) -> list[Tensor]:
        calls.append(index)
        if len(calls) == 6:
            raise error
        return list(multiply(index, tiles, rows))

    monkeypatch.setattr(model.target, "multiply", failing)
    with pytest.raises(type(error)), model.guard():
        model.verify(NODES, ALL)
    assert calls == list(range(6))
    model.cache.rewind(0, 0)
    before = model.supply.bytes_used
    again, _ = model.verify(NODES, ALL)
    assert torch.equal(again, plain)
    assert model.supply.bytes_used - before == model.plan.streamed_bytes


@torch.inference_mode()
def test_memory_that_ran_out_ends_the_request_and_no_other(model: Model) -> None:
    plain, _ = model.verify(NODES, ALL)
    words = r"^The device ran out of memory in this request \(.*\): shorten the prompt"
    with pytest.raises(UnderstudyError, match=words), model.guard():
        raise MemoryError("no 20 GiB")
    with model.guard():
        again, _ = model.verify(NODES, ALL)
    assert torch.equal(again, plain)


def test_a_lost_device_is_never_used_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.device, "lost", lambda error: "launch" in str(error), raising=False)
    abandoned: list[int] = []
    monkeypatch.setattr(model.supply, "abandon", lambda: abandoned.append(1))
    with pytest.raises(ValueError, match="harmless"), model.guard():
        raise ValueError("harmless")
    assert abandoned == [1]
    for text in ("launch failure\nmore lines", "never raised"):
        words = r"^cpu stopped working .*\(launch failure\): load the model again"
        with pytest.raises(UnderstudyError, match=words), model.guard():
            raise RuntimeError(text)
    assert abandoned == [1], "nothing is asked of a device that is lost"


def test_a_note_is_a_warning_and_stands_in_the_plan_that_everybody_sees(llm: LLM, model: Model) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.say("the disk is slow today")
    assert [str(warning.message) for warning in told] == ["the disk is slow today"]
    assert llm.plan.notes[-1] == model.plan.notes[-1] == "the disk is slow today"


def test_the_trees_of_all_sequences_fill_the_tiles_of_the_plan(model: Model) -> None:
    assert model.tree_nodes == TILE * model.plan.passes.trees >= TILE


def test_drafting_on_is_free_until_the_ring_is_full(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for full in (True, False):
        monkeypatch.setattr(model, "ring", SimpleNamespace(full=full))
        assert model.filling() is not full
    monkeypatch.setattr(model, "ring", None)
    assert not model.filling() and model._waited() == 0.0


def test_closing_twice_closes_once_and_the_second_model_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    for name in ("lookup", "ring", "device"):
        monkeypatch.setattr(getattr(model, name), "close", lambda name=name: closed.append(name), raising=False)
    monkeypatch.setattr(model, "companion", SimpleNamespace(close=lambda: closed.append("companion")))
    model.close()
    assert sorted(closed) == ["companion", "device", "lookup", "ring"]
