"""Mixtures of experts the whole way of a token on a device: the CPU's tokens in float32, and with drafting those without."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice, RowDevice
from tests.fake_graphs import Recorder, own_kernels
from tests.mtp import fit_mtp, publish_mtp
from tests.quantised import publish_mxfp4
from tests.tiny import save
from understudy import LLM, SamplingParams, UsageError
from understudy.devices import DEVICES
from understudy.heads.experts import HeldExperts
from understudy.models.mixtures.experts import mixes
from understudy.models.whole_pass import WholePass
from understudy.tree import Nodes, TokenTree

pytest.importorskip("triton")

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
GREEDY = SamplingParams(max_new_tokens=7, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.9, seed=3)
# What a level asks of a GPU for one layer's experts, the router aside.
EXPERTS = {"_places": 1, "index_select": 1, "_multiply": 2, "silu": 1, "_add": 1}
LAYERS = 2


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(seed=3))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")


def llm(model: Path, **options: Any) -> LLM:
    given = {"codec": "raw", "memory": "2GiB", "resident": "none", "context": 128, "rows": 2, "device": "fake"}
    return LLM(model, **{**given, **options})


def texts(model: LLM, prompts: Sequence[list[int]] = (PROMPT,)) -> list[list[int]]:
    return [done.token_ids for params in (GREEDY, SAMPLED) for done in model.generate(list(prompts), params)]


@pytest.mark.parametrize("family", ["mixtral", "nemotron_h-experts", "llama4_text"])
def test_in_float32_the_tokens_are_the_cpus(family: str, tmp_path: Path) -> None:
    save(tmp_path / "model", family)
    with llm(tmp_path / "model", method="none", device="cpu") as cpu:
        plain = texts(cpu)
    with llm(tmp_path / "model") as fake:
        assert texts(fake) == plain
        assert fake.model.target.whole and not any("slower" in note for note in fake.plan.notes)
    assert len(set(plain[1])) > 3


@pytest.mark.parametrize("family", ["qwen3_5_moe_text"])
def test_in_bfloat16_drafting_changes_no_token(family: str, tmp_path: Path) -> None:
    """One text and two side by side; all experts come in every pass."""
    save(tmp_path / "model", family, torch.bfloat16, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    prompts = [PROMPT, [7, 8, 9]]
    with llm(tmp_path / "model", method="none") as fake:
        plain = texts(fake, prompts)
        done = fake.generate([PROMPT], GREEDY)[0]
        assert done.stats.bytes_streamed == pytest.approx((done.stats.rounds + 1) * fake.plan.streamed_bytes, rel=0.01)
    with llm(tmp_path / "model") as fake:
        assert texts(fake, prompts) == plain
        assert fake.generate([PROMPT], GREEDY)[0].stats.accepted > 0


def test_codes_in_mxfp4_are_decoded_there(tmp_path: Path) -> None:
    publish_mxfp4(tmp_path / "model", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    with llm(tmp_path / "model", method="none", device="cpu", dtype="float32") as cpu:
        plain = texts(cpu)
    with llm(tmp_path / "model", dtype="float32") as fake:
        assert texts(fake) == plain and len(set(plain[1])) > 3
        assert {entry.codec for entry in fake.store.linears.values() if entry.experts} == {"mxfp4"}


def test_a_level_is_recorded_and_takes_few_launches_for_the_experts_of_a_layer(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=LAYERS)
    with llm(tmp_path / "model") as fake:
        texts(fake)
        search = fake.engine.drafter.search  # type: ignore[attr-defined]
        assert search.replayed > 0 and not any("slower" in note for note in fake.plan.notes)
        for graph in search.graphs.values():
            found = Counter(graph.launches)
            assert {name: found[name] for name in EXPERTS} == {name: count * LAYERS for name, count in EXPERTS.items()}
            assert "bincount" not in found and "argsort" not in found and "sort" not in found


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "llama4_text"])
def test_a_pass_asks_the_device_for_no_value_until_it_is_done(family: str, tmp_path: Path) -> None:
    """Each layer's experts take the launches of a level, and routers one of ours."""
    lists = {"moe_layers": [0, 1], "no_rope_layers": [1, 0]} if family == "llama4_text" else {}
    save(tmp_path / "model", family, torch.bfloat16, num_hidden_layers=LAYERS, **lists)
    nodes = Nodes.of(TokenTree.chain(PROMPT), 0, 0)
    with llm(tmp_path / "model", method="none", resident="residual") as fake, torch.inference_mode():
        target = fake.model.target
        target.cache.begin_pass(nodes)
        target.current.under_way = under_way = WholePass(target, nodes)
        wanted, recorder = under_way.forward(), Recorder()
        with recorder, own_kernels(recorder):
            found = under_way.forward()
        target.current.under_way = None
    assert torch.equal(found, wanted)
    mixed = sum(1 for entry in fake.store.linears.values() if entry.experts) // 2
    launched = Counter(recorder.launches)
    # a layer over latent states makes queries that meet them, and widens what these gave
    over_states = 2 * sum(layer.latent for layer in target.cache.shapes)
    assert mixed and launched["_places"] == launched["_add"] == mixed and not launched["linear"]
    assert launched["_multiply_whole"] == mixed + over_states and bool(over_states) == (family == "deepseek_v3")
    assert launched["_multiply_routed"] == 2 * mixed


def test_where_experts_lie_changes_no_token(tmp_path: Path) -> None:
    """Some stay beside their copies, or in their place, where levels multiply by them, or are decoded beside codes of 6 bits."""
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=2)
    with llm(tmp_path / "model", method="none") as fake:
        plain = texts(fake)
    with llm(tmp_path / "model") as fake:
        least = fake.plan.least_bytes
    for options in ({"resident": "residual"}, {"resident": "whole", "memory": "2GiB"}, {"codec": "delta", "bits": 6}):
        with llm(tmp_path / "model", **{"memory": least + (3 << 18), **options}) as fake:
            assert texts(fake) == plain, options
            plan = fake.plan
            if "resident" in options:
                assert plan.residents or plan.whole or plan.decoded or not plan.streamed_bytes, options
            if options.get("resident") == "whole":
                assert any(fake.model.weights.entries[index].experts for index in plan.whole)
            assert not any("slower" in note for note in plan.notes), plan.notes


@pytest.mark.parametrize("device", [lambda: FakeDevice(triton=False), RowDevice])
def test_without_kernels_for_experts_the_host_counts_them(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", device)
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=2)
    found = []
    for method in ("none", "substitute"):
        with llm(tmp_path / "model", method=method) as fake:
            found.append(texts(fake, [PROMPT, list(range(40))]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("bits", "device"), [(8, FakeDevice), (4, FakeDevice), (16, FakeDevice), (8, lambda: FakeDevice(triton=False))],
    ids=["8", "4", "whole", "no kernels"],
)  # fmt: skip
def test_experts_of_a_head_multiply_on_the_device(
    bits: int, device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of few bits by its kernels, if it has some; whole ones as the host counts them."""
    monkeypatch.setattr(fake_device, "open_fake", device)
    model = publish_mtp(tmp_path / "model", "glm4_moe", torch.bfloat16)
    with llm(tmp_path / "model", method="none") as fake:
        plain = texts(fake)
    fit_mtp(tmp_path / "model", model, [PROMPT + text[:6] for text in plain])
    with llm(tmp_path / "model", method=f"mtp:bits={bits},width=1,depth=3") as fake:
        done = [fake.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        (experts,) = {module for module in fake.engine.drafter.proposer.runner.head.modules() if mixes(module)}  # type: ignore
        held = [isinstance(getattr(experts, name), HeldExperts) for name in ("gate_up_proj", "down_proj")]
    assert [each.token_ids for each in done] == plain and min(each.stats.accepted for each in done) > 0
    assert held == [bits < 16] * 2


def test_passes_that_go_tile_by_tile_multiply_all_tiles_by_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model's rows do not have the same bits in passes of other sizes."""
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=2)
    prompt = [(7 * i) % 250 for i in range(70)]
    with llm(tmp_path / "model", method="none") as fake:
        whole = texts(fake, [prompt])
    monkeypatch.setattr("understudy.models.model.rows_apart", lambda *_: False)
    with llm(tmp_path / "model") as fake:
        assert texts(fake, [prompt]) == whole and not fake.model.target.whole


def test_several_devices_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16)
    with pytest.raises(UsageError, match="A mixture of experts runs on one device so far: leave --devices out"):
        LLM.plan_only(tmp_path / "model", machine="cuda:memory=4GB,link=25GB/s,host=8GB", devices="cuda:0,cuda:1", context=64)
