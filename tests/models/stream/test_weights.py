"""What is held of a Store under a plan: every part is resident or streams, never both, and numbers stay those of the Store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import save
from understudy import LLM
from understudy.devices.processor import Processor
from understudy.kernels.pack import block
from understudy.models.stream.weights import Weights, held, largest
from understudy.plan.placement import Plan
from understudy.tiers import ReadSettings
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.store import Store

SETTINGS = ReadSettings(block=65536, threads=2)


@pytest.fixture(scope="module", params=["raw", "delta"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Plan, Checkpoint]]:
    path = tmp_path_factory.mktemp("weights") / "model"
    save(path, "llama", torch.bfloat16, num_hidden_layers=2)
    store = LLM.prepare(path, codec=request.param, output=path.parent / "store")
    yield store, LLM.plan_only(store.path, memory="1GiB", resident="none", context=64), Checkpoint.open(path)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), drafts=st.booleans())
def test_every_part_is_here_or_streams(prepared: tuple[Store, Plan, Checkpoint], data: st.DataObject, drafts: bool) -> None:
    store, plan, checkpoint = prepared
    entries = [store.linears[spec.module] for spec in store.layout.linears]
    owners = [index for index, entry in enumerate(entries) for _ in entry.parts]
    whole = data.draw(st.sets(st.sampled_from(range(len(entries)))), "whole")
    decoded = data.draw(st.sets(st.sampled_from(range(len(entries)))), "decoded") - whole
    apart = whole | decoded
    resident = data.draw(st.sets(st.sampled_from(range(len(owners)))), "resident")
    resident = {number for number in resident if owners[number] not in apart}
    placed = replace(plan, whole=frozenset(whole), decoded=frozenset(decoded), residents=frozenset(resident))
    weights = Weights(store, placed, SETTINGS, Processor(1), drafts=drafts)
    streamed = [part for part in weights.parts if part.number not in weights.residents]
    assert {part.number for part in streamed} == {n for n in range(len(owners)) if owners[n] not in apart and n not in resident}
    assert all(weights.stored[part.number] == entries[part.linear].parts[0].stored for part in streamed)
    for index in apart:
        (part,) = (part for part in weights.parts if part.linear == index)
        source = checkpoint.read(entries[index].weight)
        assert torch.equal(weights.residents[part.number], block(source))
        assert (weights.substitutes[index].keys() == {"weight"}) == (index in whole)
        assert weights.linears[index].codec.name == "raw", "nothing is left to decode"
    kept = {index for index, tensors in enumerate(weights.substitutes) if tensors}
    assert kept == {index for index, entry in enumerate(entries) if index in whole or held(entry, drafts)}
    hauls = weights.hauls(1 << 20)
    ring = weights.ring(1 << 20, hauls)
    assert (ring is None) == (not streamed)
    if ring is not None:
        slot = ring.next()
        assert hauls[slot.index].parts[0] == streamed[0].number
        ring.close()


def test_a_buffer_is_as_large_as_the_largest_part_that_is_decoded(prepared: tuple[Store, Plan, Checkpoint]) -> None:
    store, _, _ = prepared
    entries = list(store.linears.values())
    decoded = [part.blocks * 64 * e.shape[1] * 2 for e in entries if e.codec == "delta" for part in e.parts]
    assert largest(entries) == max(decoded, default=0)
    assert (largest(entries) > 0) == ("delta" in {entry.codec for entry in entries})


def test_norms_are_one_tensor_for_both_views(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    with LLM(tmp_path / "model", memory="1GiB", context=64) as llm:
        parameters = dict(llm.model.module.named_parameters())
        shared = llm.model.weights.shared
        assert shared and all(parameters[name].data_ptr() == tensor.data_ptr() for name, tensor in shared.items())


def test_what_comes_together_of_a_mixture_is_of_one_expert(tmp_path: Path) -> None:
    """Its gate and its up, which lie behind each other; what every token uses comes together as in other models."""
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16, num_hidden_layers=2)
    store = LLM.prepare(tmp_path / "model", codec="delta", output=tmp_path / "store")
    plan = LLM.plan_only(store.path, memory="1GiB", resident="none", context=64)
    weights = Weights(store, plan, SETTINGS, Processor(1), drafts=False)
    parts = {part.number: part for part in weights.parts}
    together = 0
    for haul in weights.hauls(plan.ring_bytes):
        own = [parts[number] for number in haul.parts]
        entries = {part.linear: weights.entries[part.linear] for part in own}
        experts = {(i, p.first_block * 64 // e.spec.outputs) for i, e in entries.items() if e.experts for p in own}
        assert len(experts) <= 1 and (not experts or len(entries) == 1)
        together += bool(experts) and len(own) == 2
    assert together == 2 * 8
