"""The pinned tier on a real GPU: right bytes under a slow reader, full speed, and nothing left behind."""

import random
import time
from pathlib import Path

import pytest
import torch

from understudy.tiers import Extent
from understudy.tiers.cuda_streams import CudaStreams
from understudy.tiers.memory import aligned, arena
from understudy.tiers.pinned import PinnedTier
from understudy.tiers.ring import Ring, smallest_ring
from understudy.tiers.route import FixedRoute

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MIB = 1 << 20


def device_arena(nbytes: int) -> torch.Tensor:
    return torch.full((nbytes,), 0xFF, dtype=torch.uint8, device="cuda")


def weights(path: Path, lengths: list[int]) -> list[Extent]:
    chance, offset, extents = random.Random(4), 0, []
    with path.open("wb") as file:
        for length in lengths:
            file.write(chance.randbytes(length).ljust(aligned(length), b"\0"))
            extents.append(Extent(path, offset, length))
            offset += aligned(length)
    return extents


@pytest.mark.parametrize("slow", ["reader", "copies", "neither"])
def test_every_part_is_right_when_the_reader_gets_to_it(tmp_path: Path, slow: str) -> None:
    chance = random.Random(5)
    extents = weights(tmp_path / "weights.bin", [chance.randint(1, 3 * MIB) for _ in range(20)])
    tier = PinnedTier(extents)
    assert tier.note == ""
    ring = Ring(tier, FixedRoute(range(20)), smallest_ring([extent.nbytes for extent in extents], 1), allocate=device_arena)
    content = (tmp_path / "weights.bin").read_bytes()
    expected = [torch.frombuffer(bytearray(content[e.offset :][: e.nbytes]), dtype=torch.uint8).cuda() for e in extents]
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    held = None
    for number in range(100):
        slot = ring.next()
        if slow == "reader":
            torch.cuda._sleep(2_000_000)
        elif slow == "copies" and number % 7 == 0:
            with torch.cuda.stream(tier._copies):
                torch.cuda._sleep(2_000_000)
        wrong += (slot.data != expected[slot.index]).sum()
        if held is not None:
            held.data.fill_(0xFF)
            held.release()
        held = slot
        if number == 50:
            ring.rewind()
            held = None
    assert wrong.item() == 0
    stats = ring.stats
    ring.close()
    assert stats.bytes_read > 0 and stats.busy_seconds > 0


def test_copies_run_at_the_speed_of_pinned_memory(tmp_path: Path) -> None:
    extents = weights(tmp_path / "weights.bin", [8 * MIB] * 16)
    ring = Ring(PinnedTier(extents), FixedRoute(range(16)), 64 * MIB, allocate=device_arena)
    for _ in range(64):
        ring.next().release()
    torch.cuda.synchronize()
    host = torch.empty(128 * MIB, dtype=torch.uint8, pin_memory=True)
    into = torch.empty(128 * MIB, dtype=torch.uint8, device="cuda")
    into.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(4):
        into.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    best = 4 * host.numel() / (time.perf_counter() - began)
    reached = ring.stats.link_bytes_per_second
    ring.close()
    print(f"ring {reached / 1e9:.1f} GB/s, plain pinned copies {best / 1e9:.1f} GB/s")
    assert reached > 0.8 * best


def test_a_refusal_is_said_and_no_error_stays_behind() -> None:
    device, memory = CudaStreams(), arena(MIB)
    assert device.register(memory) == ""
    assert "refused to pin 1 MiB" in device.register(memory)
    assert torch.ones(3, device="cuda").sum().item() == 3
    device.unregister(memory)


def test_unpinned_memory_is_copied_right_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaStreams, "register", lambda self, memory: "refused")
    extents = weights(tmp_path / "weights.bin", [MIB] * 4)
    content = (tmp_path / "weights.bin").read_bytes()
    ring = Ring(PinnedTier(extents), FixedRoute(range(4)), 2 * MIB, allocate=device_arena)
    assert ring.tier.note == "refused"
    for number in range(12):
        slot = ring.next()
        assert bytes(slot.data.cpu().numpy()) == content[number % 4 * MIB :][:MIB]
        slot.release()
    ring.close()
