"""Decoder blocks that run in fewer steps: taken over where they give what the stock ones give, and nowhere else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.fake_device import FakeDevice
from tests.tiny import MIXTURES, save
from understudy import LLM
from understudy.devices import DEVICES
from understudy.kernels import blocks
from understudy.models import draft
from understudy.models.fused_blocks import fused
from understudy.models.fused_blocks.block_structure import usual_blocks, usual_mlps
from understudy.models.fused_blocks.fusing import FusedParts
from understudy.models.mixtures.experts import mixes
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
    experts = [module for module in model.module.modules() if mixes(module)]
    for module in (*usual_blocks(model.module), *usual_mlps(model.module), *experts):
        module.__dict__.pop("forward", None)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("llama-tied", (3, 0, 0)),
        ("mistral", (3, 0, 0)),
        # norms of each head of queries and keys
        ("qwen3", (3, 0, 0)),
        # and norms after both halves, gated by gelu; turned by other angles where all tokens are seen
        ("gemma3_text", (4, 0, 0)),
        # norms of all heads together, and none before
        ("olmo2", (3, 0, 0)),
        # what is added has a factor
        ("granite", (3, 0, 0)),
        # neighbours are turned together
        ("helium", (3, 0, 0)),
        # one layer is not turned
        ("smollm3", (3, 0, 0)),
        # one weight for queries, keys and values; halves of the other one share a block
        ("phi3", (0, 3, 0)),
        # neighbours of one half of a head are turned
        ("glm4", (0, 3, 0)),
        # mixtures: with a dense layer, and shared experts beside the others
        ("qwen3_moe", (0, 3, 0, 3)),
        ("glm4_moe", (1, 2, 2, 2)),
        # scores with sinks, halves turned by the same angles
        ("gpt_oss", (0, 3, 0)),
        # scores are capped
        ("gemma2", (3, 0, 0)),
        # a gate after attention; recurrent layers whose values have no codes
        ("qwen3_5_text", (1, 0, 3)),
        # keys that are values before norm and turn, values that are normed, a factor of all
        ("gemma4_text", (4, 0, 0)),
        # layers that read the keys of earlier ones
        ("gemma4_unified_text", (6, 0, 0)),
        # and with a third part in each block, which has no codes here
        ("gemma4-e", (8, 0, 0)),
        # experts beside an MLP
        ("gemma4-moe", (0, 3, 3, 3)),
        # an MLP that is not gated
        ("arcee", (0, 3, 0)),
        # layers of another structure
        ("gpt2", (0, 0, 0)),
    ],
)
@torch.inference_mode()
def test_what_is_usual_drafts_the_same_in_fewer_steps(opened: Open, family: str, parts: tuple[int, ...]) -> None:
    model = opened(family, torch.float32).model
    assert model.fused == FusedParts(*parts)
    trees = [Nodes.of(TokenTree.chain(TEXT), 0, 0)]
    if not model.cache.recurrent:
        trees.append(Nodes.of(TokenTree.of(TEXT[:5], [-1, 0, 0, 1, 1]), 1, 0))
    nodes = Nodes.join(trees)
    ours = model.draft(nodes)
    stock(model)
    wanted = model.draft(nodes)
    # Where experts are chosen by the narrowest of margins, rounding at another place may choose others, which are as far off.
    exact = model.verify(nodes, torch.arange(len(nodes)))[0] if family in MIXTURES else wanted
    off, stock_off = ((found - exact).float().norm() for found in (ours, wanted))
    assert off < (1.3 * stock_off if family in MIXTURES else 0.1 * wanted.float().norm())
    assert not any(parts) or not torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("family", "options", "blocks"),
    [
        # one weight of both halves of an MLP
        ("phi3", {"intermediate_size": 192}, 3),
        # a third part of each block
        ("gemma4-e", {"hidden_size_per_layer_input": 32}, 8),
    ],
)
@torch.inference_mode()
def test_sizes_decide_what_has_codes(family: str, options: dict[str, Any], blocks: int, tmp_path: Path) -> None:
    save(tmp_path, family, torch.bfloat16, **options)
    with LLM(tmp_path, memory="1GiB", context=128, rows=1) as llm:
        nodes = Nodes.of(TokenTree.chain(TEXT), 0, 0)
        assert llm.model.fused == FusedParts(blocks)
        ours = llm.model.draft(nodes)
        stock(llm.model)
        wanted = llm.model.draft(nodes)
    assert (ours - wanted).float().norm() < 0.1 * wanted.float().norm()


@pytest.mark.parametrize("stock_layers", [range(6, 8), range(4), range(2, 8, 2)])
@torch.inference_mode()
def test_stock_blocks_read_the_keys_of_others_and_hand_them_on(
    stock_layers: range, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last four of eight layers read those of two before them."""
    alike = fused.FusedAttention.alike

    def some(self: fused.FusedAttention, *given: Any) -> bool:
        return self.layer not in stock_layers and alike(self, *given)

    monkeypatch.setattr(fused.FusedAttention, "alike", some)
    model = opened("gemma4-e", torch.float32).model
    assert model.fused == FusedParts(8 - len(stock_layers), 0, len(stock_layers))
    nodes = Nodes.of(TokenTree.chain(TEXT), 0, 0)
    ours = model.draft(nodes)
    stock(model)
    wanted = model.draft(nodes)
    assert (ours - wanted).norm() < 0.1 * wanted.norm() and not torch.equal(ours, wanted)


FIVE = ["multiply", "_attend", "multiply", "multiply", "multiply"]
SEVEN = ["multiply", "_attend", "multiply", "_finish_rows", "multiply", "multiply", "_finish_rows"]
KERNELS = {"multiply", "_attend", "_finish_rows"}


def drafted_on_a_device(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launches of a recorded level on a simulated device, of a model of two blocks that both run in fewer steps. They give what
    the stock blocks give, from the same cache; levels of a text run stock blocks there."""
    pytest.importorskip("triton")
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    with LLM(directory, memory="2GiB", context=128, rows=1, device="fake", codec="raw", resident="none") as llm:
        model, device = llm.model, cast(FakeDevice, llm.model.device)
        assert model.fused == FusedParts(len(usual_blocks(model.module))) == FusedParts(2)
        text = Nodes.of(TokenTree.chain(TEXT), 0, 0)
        level = Nodes.of(TokenTree.of([8, 9, 10, 11], [-1, 0, 0, 0]), 0, len(TEXT) - 1)[1:]
        model.draft(text)
        found: list[torch.Tensor] = []
        graph = device.recorder.capture(lambda: found.append(model.draft(level)))
        stock(model)
        wanted = model.draft(level)
    assert (found[0] - wanted).float().norm() < 0.1 * wanted.float().norm()
    return list(graph.launches)


@pytest.mark.parametrize(
    ("family", "launches", "options"),
    [
        ("llama-tied", FIVE, {}),
        ("qwen3", FIVE, {}),
        ("phi3", FIVE, {"intermediate_size": 192}),
        ("gemma3_text", SEVEN, {"layer_types": ["full_attention"] * 2}),
        ("gemma4_text", SEVEN, {"layer_types": ["full_attention"] * 2}),
    ],
)
@torch.inference_mode()
def test_on_a_device_a_block_of_a_level_is_few_launches(
    family: str, launches: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, family, torch.bfloat16, num_hidden_layers=2, **options)
    found = drafted_on_a_device(tmp_path, monkeypatch)
    ours = [name for name in found if name in KERNELS]
    assert ours == launches * 2 + ["multiply"]
    first = found.index("multiply")
    assert found[first : first + 2 * len(launches)] == ours[:-1], "something else runs between the kernels"


@torch.inference_mode()
def test_a_block_that_gives_something_else_is_found(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    stock(model)
    found: list[Any] = list(usual_blocks(model.module))
    forward = found[1].forward
    monkeypatch.setattr(found[1], "forward", lambda *given, **named: forward(*given, **named) * 1.2, raising=False)
    assert model.draft.fuse(256, 128) == FusedParts(2, 0, 1)


@torch.inference_mode()
def test_keys_that_are_turned_otherwise_are_found(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama", torch.float32).model
    stock(model)
    turn = blocks.attend
    monkeypatch.setattr(blocks, "attend", lambda made, turns, *rest: turn(made, (turns[0], -turns[1]), *rest))
    assert model.draft.fuse(256, 128) == FusedParts(0, 0, 3)


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
    blocks_there: list[Any] = list(usual_blocks(model.module))
    hooks = [
        blocks_there[2].register_forward_pre_hook(lambda module, args, named: ((args[0] * 1.5, *args[1:]), named), with_kwargs=True)
    ]
    calls = noted(monkeypatch)
    assert model.draft.fuse(256, 128) == FusedParts(3)
    calls.clear()
    model.draft(Nodes.of(TokenTree.chain(TEXT[:4]), 0, 0))
    assert calls == [[0, 1], [2]]
    for hook in hooks:
        hook.remove()


def test_no_pass_is_no_level() -> None:
    assert draft._level(None) is None
