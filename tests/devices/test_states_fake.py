"""Latent states the whole way of a token on a device: kept in the place of keys and values, with the CPU's tokens in float32, and
with drafting those without."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice, RowDevice
from tests.fake_graphs import Recorder, own_kernels
from tests.models.fused_blocks.test_fused_latent import EVEN
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.models.fused_blocks.fusing import FusedParts
from understudy.models.whole_pass import WholePass
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")
PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
GREEDY = SamplingParams(max_new_tokens=7, ignore_eos=True, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.9, seed=3)
LAYERS = 2
# of sizes that have codes, and dense, so that whole blocks run in fewer steps
DENSE: dict[str, dict[str, Any]] = {
    "youtu": {"q_lora_rank": 64},
    "deepseek_v3": {"q_lora_rank": None, "first_k_dense_replace": LAYERS},
    "deepseek_v2": {"q_lora_rank": None, "first_k_dense_replace": LAYERS},
}
# of a block's attention in a level: products of what comes before it, the states, the queries, attention, what it attended to,
# and the output
ATTENTION = ["multiply", "multiply", "_keep", "_multiply_whole", "_attend_states", "_multiply_whole", "multiply"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(seed=3))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")


def llm(model: Path, **options: Any) -> LLM:
    given = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 128, "rows": 2, "device": "fake"}
    return LLM(model, **{**given, **options})


def texts(model: LLM) -> list[list[int]]:
    return [done.token_ids for params in (GREEDY, SAMPLED) for done in model.generate([PROMPT, [7, 8, 9]], params)]


def assert_states_are_kept(model: LLM) -> None:
    layers = [state for state in model.model.cache.layers if state.shape.kv_heads]
    assert layers and all(state.shape.latent and state.keys.shape[1] == 1 for state in layers)
    assert all(state.values.data_ptr() == state.keys.data_ptr() for state in layers)
    widening = {i for i, spec in enumerate(model.model.store.layout.linears) if spec.module.endswith("kv_b_proj")}
    assert widening <= model.plan.whole


@pytest.mark.parametrize("family", ["deepseek_v2", "minicpm3", "glm4_moe_lite", "deepseek_v32"])
def test_in_float32_the_tokens_are_the_cpus(family: str, tmp_path: Path) -> None:
    save(tmp_path / "model", family)
    with llm(tmp_path / "model", method="none", device="cpu") as cpu:
        plain = texts(cpu)
    with llm(tmp_path / "model") as fake:
        assert texts(fake) == plain
        assert_states_are_kept(fake)
        assert fake.model.target.whole and not any("slower" in note for note in fake.plan.notes)
    assert len(set(plain[2])) > 3


@pytest.mark.parametrize("family", DENSE)
def test_in_bfloat16_drafting_changes_no_token_and_levels_take_few_launches(family: str, tmp_path: Path) -> None:
    save(tmp_path / "model", family, torch.bfloat16, num_hidden_layers=LAYERS, **EVEN, **DENSE[family])
    with llm(tmp_path / "model", method="none") as fake:
        plain = texts(fake)
        assert_states_are_kept(fake)
    with llm(tmp_path / "model", method="substitute:width=2,depth=3") as fake:
        assert texts(fake) == plain
        done = fake.generate([PROMPT], GREEDY)[0]
        assert done.stats.bytes_streamed > 0 and done.stats.accepted > 0
        assert fake.model.fused == FusedParts(LAYERS)
        search = fake.engine.drafter.search  # type: ignore[attr-defined]
        assert search.replayed > 0 and not any("slower" in note for note in fake.plan.notes)
        wanted = ATTENTION if DENSE[family]["q_lora_rank"] else ATTENTION[1:]
        for graph in search.graphs.values():
            # a part of what the first product made of several nodes is put side by side for the second
            launches = [name for name in graph.launches if name != "contiguous"]
            assert launches.count("_keep") == LAYERS
            for start in (place for place, name in enumerate(launches) if name == "_keep"):
                first = start - wanted.index("_keep")
                assert launches[first : first + len(wanted)] == wanted


@torch.inference_mode()
def test_a_pass_makes_queries_and_widens_what_they_attended_to_in_one_launch_each(tmp_path: Path) -> None:
    save(tmp_path / "model", "youtu", torch.bfloat16, num_hidden_layers=LAYERS)
    nodes = Nodes.of(TokenTree.chain(PROMPT), 0, 0)
    with llm(tmp_path / "model", method="none", resident="residual") as fake:
        target, recorder = fake.model.target, Recorder()
        target.cache.begin_pass(nodes)
        target.current.under_way = under_way = WholePass(target, nodes)
        with recorder, own_kernels(recorder):
            under_way.forward()
        target.current.under_way = None
    launched = Counter(recorder.launches)
    assert launched["_multiply_whole"] == 2 * LAYERS and launched["_attend"] == LAYERS


@pytest.mark.parametrize("device", [lambda: FakeDevice(triton=False), RowDevice])
def test_without_kernels_keys_and_values_are_kept(device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device, "open_fake", device)
    save(tmp_path / "model", "youtu", num_hidden_layers=LAYERS)
    with llm(tmp_path / "model", method="none", device="cpu") as cpu:
        plain = texts(cpu)
    with llm(tmp_path / "model", method="none") as fake:
        assert texts(fake) == plain
        assert not any(state.shape.latent for state in fake.model.cache.layers)
