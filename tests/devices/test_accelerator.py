"""What every device with memory of its own does, on one that is not there."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_device import GIB, FakeDevice
from understudy.codecs import CODECS, Encoded, codec
from understudy.devices.accelerator import Accelerator
from understudy.errors import UsageError
from understudy.kernels.attention import AttentionSpec, attend
from understudy.kernels.pack import block
from understudy.plan.demand import RUNTIME
from understudy.plan.machine import Machine
from understudy.plan.placement import Passes, Plan
from understudy.quantizers import QUANTIZERS, quantizer
from understudy.tree import Nodes, TokenTree

MACHINE = Machine("a processor", 2, 64 << 30, 10 << 30)


def planned(streamed: int, link: float) -> Plan:
    return Plan(
        budget_bytes=GIB,
        items={},
        residents=frozenset(),
        whole=frozenset(),
        ring_bytes=0,
        streamed_bytes=streamed,
        residual_bytes=streamed,
        context=64,
        rows=1,
        scratch=64,
        passes=Passes(1, 1),
        tile=32,
        draft_level_bytes=0,
        exact_bytes=streamed,
        link_bytes_per_second=link,
    )


def test_its_budget_is_most_of_what_is_free_and_never_more() -> None:
    device = FakeDevice(capacity=4 * GIB)
    assert device.budget(None, MACHINE) == int(0.95 * 4 * GIB) and device.budget("1GiB", MACHINE) == GIB
    with pytest.raises(UsageError, match="--memory 5 GiB is more than the 4 GiB that are free on fake"):
        device.budget("5GiB", MACHINE)


def test_what_host_memory_does_not_hold_comes_from_disk_and_makes_the_link_slower() -> None:
    device = FakeDevice(triton=False)
    whole = device.behind(planned(GIB, 2e9), RUNTIME + 2 * GIB, MACHINE, 1e8)
    assert whole.link_bytes_per_second == pytest.approx(2e9) and whole.host_bytes == 2 * GIB and whole.device == "fake"
    half = device.behind(planned(GIB, 2e9), RUNTIME + GIB // 2, MACHINE, 1e8)
    assert half.link_bytes_per_second == pytest.approx(2e8)
    assert any("512 MiB come from disk on every pass" in note for note in half.notes) and device.note in half.notes
    with pytest.raises(UsageError, match="--host-memory 100 MiB is too small: the process itself takes"):
        device.behind(planned(GIB, 2e9), "100MiB", MACHINE, 1e8)


def test_its_link_is_measured_and_the_memory_for_that_is_given_back() -> None:
    device = FakeDevice()
    assert Accelerator.link_bytes_per_second(device, 0.0) > 0
    assert device.simulated.copied == 4 * (64 << 20) and not device.simulated.registered


def test_errors_are_told_apart() -> None:
    device = FakeDevice()
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has more. And so on.")
    assert device.out_of_memory(full) == "CUDA out of memory. Tried to allocate 2 GiB" and not device.lost(full)
    gone = RuntimeError("CUDA error: unspecified launch failure\nMore.")
    assert device.lost(gone) and not device.out_of_memory(gone)
    for other in (RuntimeError("shapes differ"), ValueError("CUDA error"), KeyboardInterrupt()):
        assert not device.lost(other) and not device.out_of_memory(other)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("triton", [True, False])
def test_codecs_say_themselves_whether_they_need_triton(name: str, triton: bool) -> None:
    device, decoder = FakeDevice(triton=triton), codec(name)
    refused = device.refusal(decoder)
    assert bool(refused) == (decoder.needs_triton and not triton)
    if refused:
        assert re.search(f"stored as {name} need Triton on fake, and Triton is not installed: .*--codec raw", refused)
        return
    if decoder.needs_triton:
        pytest.importorskip("triton")
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        if decoder.applies(dtype, "int4"):
            blocks = block(torch.randn(64, 64).to(dtype))
            substitute = quantizer("int4").quantize(torch.randn(64, 64).to(dtype))
            data, out = decoder.encode(blocks, substitute), torch.full_like(blocks, torch.nan)
            found = device.decode(decoder, Encoded(data, 1, 64, dtype, substitute), None if decoder.in_place else out)
            assert torch.equal(found.view(torch.int16), blocks.view(torch.int16))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_draft_product_without_triton_is_the_quantisers_own(name: str) -> None:
    maker, x = quantizer(name), torch.randn(3, 64)
    tensors = maker.quantize(torch.randn(128, 64))
    device = FakeDevice(triton=False)
    own = (maker.by_torch if name == "exact" else maker.linear)(tensors, (128, 64), torch.float32)(x)
    assert torch.equal(device.draft_product(maker, tensors, (128, 64), torch.float32)(x), own)
    assert device.exact_product(torch.bfloat16, 64, torch.bfloat16) is None


@settings(max_examples=15, deadline=None)
@given(length=st.integers(0, 70), window=st.sampled_from([0, 9]), parents=st.lists(st.integers(0, 5), max_size=6))
def test_a_draft_attends_as_the_target_does(length: int, window: int, parents: list[int]) -> None:
    tree = TokenTree.of([0] * (1 + len(parents)), [-1, *(min(parent, i) for i, parent in enumerate(parents))])
    nodes, spec, device = Nodes.of(tree, 0, length), AttentionSpec(0.2, window), FakeDevice(triton=False)
    query, (keys, values) = torch.randn(len(tree), 4, 16), torch.randn(2, 1, 2, 128, 16)
    drafted = device.draft_attention(nodes)(query, keys, values, spec)
    assert torch.equal(drafted, device.attend(query, keys, values, nodes, spec))
    assert torch.allclose(drafted, attend(query, keys, values, nodes, spec), atol=1e-5)


@pytest.mark.parametrize("right", [True, False])
def test_a_product_that_is_wrong_is_noticed_and_torch_multiplies(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from understudy.kernels.gpu.draft_product import GroupedProduct

    if not right:
        whole = GroupedProduct.__call__
        monkeypatch.setattr(GroupedProduct, "__call__", lambda self, x: whole(self, x).roll(1, -1))
    shape, maker, device = (150, 128), quantizer("int4"), FakeDevice()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    tensors = maker.quantize(weight)
    x = torch.randn(5, shape[1]).to(torch.bfloat16)
    if right:
        multiply = device.draft_product(maker, tensors, shape, torch.bfloat16)
        assert not device.note
    else:
        with pytest.warns(RuntimeWarning, match="products of int4.* in bfloat16 gives wrong results on fake"):
            multiply = device.draft_product(maker, tensors, shape, torch.bfloat16)
        assert "wrong results" in device.note
        # said once
        device.draft_product(maker, tensors, shape, torch.bfloat16)
    wanted = x.float() @ maker.dequantize(tensors, shape).T
    assert (multiply(x).float() - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("seed", range(5))
def test_what_is_sent_to_another_device_is_there_at_return(seed: int) -> None:
    """Copies are late, in any order; nobody waits for other work."""
    device = FakeDevice(seed=seed, triton=False)
    sources = [torch.arange(35.0).view(1, 5, 7), torch.arange(6).view(2, 3).T, torch.tensor(4), torch.empty(3, 0)]
    for _ in range(3):
        made = device.sent(sources, "cpu")
        assert all(torch.equal(one, source) and one is not source for one, source in zip(made, sources, strict=True))
    assert device.simulated.copied == 3 * (35 * 4 + 6 * 8 + 8) and not device.simulated.copies.work
