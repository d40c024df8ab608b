"""Recurrent layers the whole way of a token on a device: few launches, however many nodes, and with drafting the text without."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice
from tests.fake_graphs import Recorder, own_kernels
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.models.whole_pass import WholePass
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
# two layers, of which the first is recurrent
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
OURS = ("_convolve", "weigh", "walk")
# of a block of the delta rule in a level: products of two kinds of copies, the rule, and the products behind it
BLOCK = ["multiply", "multiply", "_ask", "weigh", "walk", "_gate", "multiply", "multiply", "multiply"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(seed=3))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")


def llm(model: Path, **options: Any) -> LLM:
    given = {"codec": "raw", "memory": "2GiB", "resident": "residual", "context": 256, "rows": 2, "device": "fake"}
    return LLM(model, **{**given, **options})


def launched(fake: LLM, tree: TokenTree) -> list[str]:
    """What a pass of `tree` after the prompt asks a GPU to run. It asks for no value before it is done."""
    target, recorder = fake.model.target, Recorder()
    nodes = Nodes.of(tree, 0, target.cache.lengths[0])
    target.cache.begin_pass(nodes)
    target.current.under_way = under_way = WholePass(target, nodes)
    with recorder, own_kernels(recorder):
        under_way.forward()
    target.current.under_way = None
    return recorder.launches


@torch.inference_mode()
def test_a_pass_takes_as_many_launches_for_48_nodes_as_for_8(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_5_text", torch.bfloat16, **SMALL)
    chance = torch.Generator().manual_seed(1)
    parents = [-1, *(int(torch.randint(max(0, i - 9), i, (), generator=chance)) for i in range(1, 48))]
    with llm(tmp_path / "model", method="none") as fake:
        few = launched(fake, TokenTree.chain(PROMPT))
        many = launched(fake, TokenTree.of([1] * 48, parents))
    for found in (few, many):
        assert [name for name in found if name in OURS] == list(OURS)
    assert Counter(many) == Counter(few)


@torch.inference_mode()
def test_a_block_of_the_delta_rule_in_a_level_is_nine_launches(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_5_text", torch.bfloat16, **SMALL, linear_value_head_dim=32)
    with llm(tmp_path / "model", method="substitute:width=2,depth=3") as fake:
        fake.generate([PROMPT], SamplingParams(max_new_tokens=4, ignore_eos=True))
        search = fake.engine.drafter.search  # type: ignore[attr-defined]
        assert search.replayed > 0 and not any("slower" in note for note in fake.plan.notes)
        for graph in search.graphs.values():
            first = graph.launches.index("_ask") - 2
            assert graph.launches[first : first + len(BLOCK)] == BLOCK
            assert Counter(graph.launches)["walk"] == 1 and "einsum" not in graph.launches
        assert fake.model.fused.blocks == 1


@torch.inference_mode()
@pytest.mark.parametrize("family", ["bamba", "kimi_linear"])
def test_a_level_is_three_launches_for_a_rule_where_its_block_is_not_as_usual(family: str, tmp_path: Path) -> None:
    """Mamba-2, and a rule that forgets by channel."""
    save(tmp_path / "model", family, torch.bfloat16)
    with llm(tmp_path / "model", method="substitute:width=2,depth=3") as fake:
        fake.generate([PROMPT], SamplingParams(max_new_tokens=4, ignore_eos=True))
        search = fake.engine.drafter.search  # type: ignore[attr-defined]
        layers = len(fake.model.target.cache.recurrent)
        assert search.replayed > 0 and layers > 1 and not any("slower" in note for note in fake.plan.notes)
        for graph in search.graphs.values():
            found = Counter(graph.launches)
            assert [found[name] for name in OURS] == [layers] * 3
            assert not found["einsum"] and not found["cumprod"]


def test_a_prompt_is_folded_on_its_way_and_drafting_changes_no_token(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_5_text", torch.bfloat16, **SMALL)
    prompt = [(7 * i) % 250 for i in range(140)]
    found = []
    for method in ("none", "substitute:width=2,depth=2"):
        with llm(tmp_path / "model", method=method, resident="none", rows=1) as fake:
            done = fake.generate([prompt], SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.8, seed=2))[0]
            state = fake.model.target.cache.recurrent[0]
            assert state.newest[0] == 2 and done.stats.bytes_streamed > 0
            found.append(done.token_ids)
    assert done.stats.accepted > 0 and found[0] == found[1]


@pytest.mark.parametrize(("family", "served"), [("mamba", False), ("qwen3_next", True)])
def test_layers_that_plain_torch_runs_are_told(family: str, served: bool, tmp_path: Path) -> None:
    save(tmp_path, family, torch.bfloat16)
    with llm(tmp_path) as fake:
        told = any("recurrent layers run in plain torch on" in note for note in fake.plan.notes)
        assert told is not served and any(layer.recurrent for layer in fake.model.cache.shapes)
