"""The processor as a device: its memory is the process's own, and what it is asked for is done when the call returns."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import startup
from understudy.codecs import CODECS, codec
from understudy.devices import open_device, processor
from understudy.devices.processor import SHARE, Processor
from understudy.kernels import attention
from understudy.kernels.attention import AttentionSpec
from understudy.plan.demand import EXPECTED_GROWTH, REST, RUNTIME
from understudy.plan.machine import Machine
from understudy.tiers.memory import ALIGNMENT
from understudy.tree import Nodes, TokenTree

MACHINE = Machine("a processor", 2, 64 << 30, 10 << 30, memory_bandwidth=3e9)


def test_its_budget_is_what_was_asked_for_or_most_of_what_the_process_may_hold() -> None:
    device = open_device("cpu")
    assert device.budget("3GiB", MACHINE) == 3 << 30
    assert device.budget(None, MACHINE) == int(SHARE * (10 << 30))
    assert device.link_bytes_per_second(5.0) == 5.0 and device.memory_bytes_per_second(MACHINE) == 3e9
    assert device.peak_bytes() > 50 << 20


def test_a_commands_own_process_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processor().runtime_bytes == RUNTIME, "nobody knows what of another program belongs to the model"
    monkeypatch.setattr(startup, "_owned", [True])
    for held in (297, 303, 304):
        monkeypatch.setattr(processor, "resident_bytes", lambda held=held: held << 20)
        assert Processor().runtime_bytes == (304 << 20) + EXPECTED_GROWTH + REST < RUNTIME
    monkeypatch.setattr(processor, "resident_bytes", lambda: 600 << 20)
    assert Processor().runtime_bytes == RUNTIME, "what an earlier model left is used again"


@given(st.integers(1, 1 << 20))
def test_the_disk_reads_into_its_memory_directly(nbytes: int) -> None:
    device = Processor()
    arena = device.arena(nbytes)
    assert len(arena) == nbytes and arena.data_ptr() % ALIGNMENT == 0
    assert device.incoming(arena) is arena


def test_what_it_is_asked_for_is_done_at_once() -> None:
    device = Processor()
    source, into, begun = torch.arange(8, dtype=torch.uint8), device.landing(8), device.mark()
    arrived = device.late(source, into)
    device.wait_for(arrived)
    assert torch.equal(source, into) and device.seconds_between(begun, arrived) >= 0
    assert device.graphs is None and not device.own_memory and device.drafts_see_text


def test_memory_that_is_not_there_is_recognised_and_nothing_else_is() -> None:
    device = Processor()
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    said = device.out_of_memory(raised.value)
    assert "can't allocate memory" in said and "\n" not in said
    assert device.out_of_memory(MemoryError("no room for 3 GiB")) == "no room for 3 GiB"
    assert device.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.")) != ""
    for other in (RuntimeError("shapes differ"), ValueError("can't allocate memory"), KeyboardInterrupt()):
        assert device.out_of_memory(other) == "" and not device.lost(other)


@pytest.mark.parametrize(("torchs", "allowed", "taken"), [(3, 2, 2), (2, 1, 1), (1, 2, 1)])
def test_a_quota_and_a_count_of_threads_hold_for_products_and_attention(
    torchs: int, allowed: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "cores", lambda: allowed)
    before = torch.get_num_threads()
    torch.set_num_threads(torchs)
    try:
        assert Processor().threads == torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(before)


@settings(max_examples=10, deadline=None)
@given(threads=st.integers(2, 4), window=st.sampled_from([0, 20]))
def test_threads_change_no_bit_of_attention_and_are_given_back(threads: int, window: int) -> None:
    shared = Processor(threads)
    nodes, spec = Nodes.of(TokenTree.chain([1] * 8), 0, 50), AttentionSpec(0.2, window)
    query, (keys, values) = torch.randn(8, 6, 32), torch.randn(2, 1, 3, 64, 32)
    before, attention.WORTH_SHARING = attention.WORTH_SHARING, 0
    try:
        together = shared.attend(query, keys, values, nodes, spec)
    finally:
        attention.WORTH_SHARING = before
    assert torch.equal(together, Processor(1).attend(query, keys, values, nodes, spec))
    assert shared._pool is not None
    shared.close()
    shared.close()
    assert shared._pool is None


def test_every_codec_can_be_decoded_on_it() -> None:
    assert [Processor().refusal(codec(name)) for name in CODECS] == [""] * len(CODECS)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say where threads run")
def test_a_thread_that_goes_to_another_node_starts_its_helpers_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward goes from the node of one stage to that of the next: those that share its kernels must be there too."""
    allowed = os.sched_getaffinity(0)
    nodes = {0: frozenset({min(allowed)}), 1: frozenset({max(allowed)})}
    ended: list[set[int]] = []
    monkeypatch.setattr(processor, "processors_by_node", lambda: nodes)
    monkeypatch.setattr(processor.team, "disband", lambda: ended.append(os.sched_getaffinity(0)))
    monkeypatch.setattr(processor, "_pinned", processor._Pinned())
    threads = torch.get_num_threads()
    first, second = Processor(number=0), Processor(number=1)
    try:
        with first.at_work():
            with first.at_work():
                assert os.sched_getaffinity(0) == nodes[0] and not ended
            with second.at_work():
                assert os.sched_getaffinity(0) == nodes[1]
        assert os.sched_getaffinity(0) == allowed
    finally:
        torch.set_num_threads(threads)
    assert ended == ([set(nodes[1])] if len(allowed) > 1 else [])
