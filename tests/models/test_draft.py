"""The draft view: the substitute's own model, whatever nodes run side by side, on whichever device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import save
from understudy import LLM
from understudy.devices import DEVICES
from understudy.models.model import Model
from understudy.tree import Nodes, TokenTree

TEXT = [5, 99, 5, 12, 80, 5, 99, 5, 17, 200, 3]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft") / "model"
    save(path, "gemma3_text", torch.float32)  # two kinds of layers, with and without a window
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with LLM(path, quantizer="exact", memory="1GiB", context=128, rows=2) as llm:
        yield llm.model


@torch.inference_mode()
def test_a_copy_that_is_exact_drafts_what_the_target_says(model: Model) -> None:
    nodes = Nodes.of(TokenTree.chain(TEXT), 0, 0)
    wanted = model.target(nodes, torch.arange(len(nodes)))
    assert torch.allclose(model.draft(nodes), wanted, atol=2e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parents=st.lists(st.integers(0, 8), min_size=1, max_size=8), row=st.integers(0, 1))
@torch.inference_mode()
def test_nodes_run_one_by_one_are_nodes_run_side_by_side(model: Model, parents: list[int], row: int) -> None:
    tree = TokenTree.of(TEXT[: len(parents) + 1], [-1, *(min(parent, i) for i, parent in enumerate(parents))])
    nodes = Nodes.of(tree, row, 0)
    together = model.draft(nodes)
    for state in model.cache.layers:
        state.keys.fill_(torch.nan)
    alone = torch.cat([model.draft(nodes[i : i + 1]) for i in range(len(nodes))])
    assert torch.allclose(together, alone, atol=1e-3), "a single node's keys are written by a shorter way"


@torch.inference_mode()
def test_rows_do_not_see_each_other(model: Model) -> None:
    trees = [Nodes.of(TokenTree.chain(TEXT[:4]), 0, 0), Nodes.of(TokenTree.chain(TEXT[4:9]), 1, 0)]
    alone = torch.cat([model.draft(nodes) for nodes in trees])
    assert torch.allclose(model.draft(Nodes.join(trees)), alone, atol=1e-3)


@torch.inference_mode()
def test_a_device_with_memory_of_its_own_drafts_the_same(
    path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes.of(TokenTree.of(TEXT[:6], [-1, 0, 1, 1, 2, 0]), 0, 0)
    here = model.draft(nodes)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:without_triton")
    with LLM(path, quantizer="exact", memory="2GiB", context=128, rows=2, device="fake") as llm:
        assert torch.allclose(llm.model.draft(nodes), here, atol=1e-3)
