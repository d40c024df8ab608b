"""Decoder blocks that run in fewer steps: taken over where they give what the stock ones give, and nowhere else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.fake_device import FakeDevice
from tests.tiny import save
from understudy import LLM
from understudy.devices import DEVICES
from understudy.kernels import blocks
from understudy.models import draft, fused
from understudy.models.model import Model
from understudy.tree import Nodes, TokenTree

TEXT = [5, 99, 5, 12, 80, 5, 99, 5, 17, 200, 3]
Open = Callable[[str, torch.dtype], LLM]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    llms: list[LLM] = []

    def open_one(family: str, dtype: torch.dtype) -> LLM:
        save(tmp_path / family, family, dtype)
        llms.append(LLM(tmp_path / family, memory="1GiB", context=128, rows=2))
        return llms[-1]

    yield open_one
    for llm in llms:
        llm.close()


def stock(model: Model) -> None:
    for block in fused.usual_blocks(model.module):
        block.__dict__.pop("forward")


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama-tied", torch.float32), ("mistral", torch.bfloat16), ("qwen2", torch.bfloat16)]
)
@torch.inference_mode()
def test_a_usual_model_drafts_the_same_in_fewer_steps(opened: Open, family: str, dtype: torch.dtype) -> None:
    model = opened(family, dtype).model
    assert model.fused == len(fused.usual_blocks(model.module)) == 3
    trees = [
        Nodes.of(TokenTree.chain(TEXT), 0, 0), Nodes.of(TokenTree.of(TEXT[:5], [-1, 0, 0, 1, 1]), 1, 0)
    ]  # fmt: skip
    nodes = Nodes.join(trees)
    ours = model.draft(nodes)
    stock(model)
    wanted = model.draft(nodes)
    assert (ours - wanted).float().norm() < 0.1 * wanted.float().norm()


@torch.inference_mode()
def test_on_a_device_a_block_of_a_level_is_five_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give what the stock blocks give, from the same cache; levels of a text run stock blocks there."""
    pytest.importorskip("triton")
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    save(tmp_path, "llama-tied", torch.bfloat16, num_hidden_layers=2)
    with LLM(tmp_path, memory="2GiB", context=128, rows=1, device="fake", codec="raw", resident="none") as llm:
        model, device = llm.model, cast(FakeDevice, llm.model.device)
        assert model.fused == len(fused.usual_blocks(model.module)) == 2
        text = Nodes.of(TokenTree.chain(TEXT), 0, 0)
        level = Nodes.of(TokenTree.of([8, 9, 10, 11], [-1, 0, 0, 0]), 0, len(TEXT) - 1)[1:]
        model.draft(text)
        found: list[torch.Tensor] = []
        graph = device.recorder.capture(lambda: found.append(model.draft(level)))
        ours = [name for name in graph.launches if name in ("multiply", "_attend")]
        assert ours == ["multiply", "_attend", *["multiply"] * 3] * 2 + ["multiply"]
        first = graph.launches.index("multiply")
        assert graph.launches[first : first + 10] == ours[:10], "something else runs between the kernels"
        stock(model)
        wanted = model.draft(level)
    assert (found[0] - wanted).float().norm() < 0.1 * wanted.float().norm()


@pytest.mark.parametrize("family", ["granite", "gemma2", "qwen3"])
def test_blocks_that_compute_otherwise_stay_as_they_are(opened: Open, family: str) -> None:
    assert opened(family, torch.float32).model.fused == 0


@torch.inference_mode()
def test_a_block_that_gives_something_else_is_found(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    stock(model)
    found: list[Any] = fused.usual_blocks(model.module)
    forward = found[1].forward
    monkeypatch.setattr(found[1], "forward", lambda *given, **named: forward(*given, **named) * 1.2, raising=False)
    assert model.draft.fuse() == 2


@torch.inference_mode()
def test_keys_that_are_turned_otherwise_are_found(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    stock(model)
    turn = blocks.attend
    monkeypatch.setattr(blocks, "attend", lambda made, turns, *rest: turn(made, (turns[0], -turns[1]), *rest))
    assert model.draft.fuse() == 0


@torch.inference_mode()
def test_levels_that_see_much_run_the_stock_block(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    calls = noted(monkeypatch)
    nodes = Nodes.of(TokenTree.chain(TEXT), 0, 0)
    model.draft(nodes)
    assert calls == [[0, 1, 2]]
    monkeypatch.setattr(blocks, "MANY", len(TEXT) ** 2 - 1)
    model.draft(nodes)
    assert calls == [[0, 1, 2]]


def noted(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of each chain and of each block alone, as they run from now on."""
    calls: list[list[int]] = []
    alone, chained = fused.FusedBlock.__call__, fused.BlockChain.__call__
    monkeypatch.setattr(fused.FusedBlock, "__call__", lambda self, *given: calls.append([self.layer]) or alone(self, *given))

    def chain(self: fused.BlockChain, *given: Any) -> torch.Tensor:
        calls.append([block.layer for block in self.blocks])
        return chained(self, *given)

    monkeypatch.setattr(fused.BlockChain, "__call__", chain)
    return calls


@torch.inference_mode()
def test_levels_in_one_call_are_those_of_blocks_one_by_one(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("mistral", torch.bfloat16).model
    calls = noted(monkeypatch)
    for parents in ([-1, 0, 0, 1, 1], [-1, 0], [-1]):
        nodes = Nodes.of(TokenTree.of(TEXT[: len(parents)], parents), 1, 20)
        together = model.draft(nodes)
        hidden = torch.zeros(len(nodes), 0, 0)
        assert torch.equal(together, model.draft(nodes, hidden)), "who taps hidden states has blocks run one by one"
    assert calls == [[0, 1, 2], [0], [1], [2]] * 3


@torch.inference_mode()
def test_blocks_with_something_between_them_run_apart(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    stock(model)
    blocks_there: list[Any] = fused.usual_blocks(model.module)
    hooks = [
        blocks_there[2].register_forward_pre_hook(lambda module, args, named: ((args[0] * 1.5, *args[1:]), named), with_kwargs=True)
    ]
    calls = noted(monkeypatch)
    assert model.draft.fuse() == 3
    calls.clear()
    model.draft(Nodes.of(TokenTree.chain(TEXT[:4]), 0, 0))
    assert calls == [[0, 1], [2]]
    for hook in hooks:
        hook.remove()


def test_a_norm_is_known_by_what_it_does() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(16)), 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)

    norm = Shifted()
    found = fused._norm(norm)
    assert found is not None and found.epsilon == 0.5
    assert torch.allclose(found.weight, 1 + norm.weight, atol=1e-6)
    assert fused._norm(nn.Identity()) is None


def test_only_usual_children_make_a_usual_block() -> None:
    assert fused.usual_blocks(nn.Sequential(nn.Linear(2, 2))) == []
    assert draft._level(None) is None
