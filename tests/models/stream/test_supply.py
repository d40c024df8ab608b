"""Parts are multiplied in order, wherever they come from; a pass that is left, or wants no logits, spoils nothing."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from tests.tiny import save
from understudy import LLM
from understudy.devices.processor import Processor
from understudy.models.stream import hauls
from understudy.models.stream.supply import Supply
from understudy.models.stream.weights import Weights, streamable
from understudy.models.target import TILE
from understudy.tiers import ReadSettings
from understudy.tiers.pinned import PinnedTier
from understudy.weights.checkpoint import Checkpoint

SETTINGS = ReadSettings(block=65536, threads=2)


def supply_of(weights: Weights) -> Supply:
    hauls = weights.hauls(1 << 20)
    return Supply(weights.parts, weights.linears, weights.residents, hauls, weights.ring(1 << 20, hauls))


@pytest.fixture(scope="module", params=["raw", "delta"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supply, Supply, Checkpoint]]:
    """A supply that streams all parts, one that streams none, and the source."""
    path = tmp_path_factory.mktemp("supply") / "model"
    save(path, "qwen2", torch.bfloat16, num_hidden_layers=2)
    store = LLM.prepare(path, codec=request.param, output=path.parent / "store")
    plan = LLM.plan_only(store.path, memory="1GiB", resident="none", context=64)
    supplies = []
    for residents in (frozenset[int](), frozenset(range(len(store.linears)))):
        weights = Weights(store, replace(plan, residents=residents), SETTINGS, Processor(1), drafts=False)
        supplies.append(supply_of(weights))
    yield supplies[0], supplies[1], Checkpoint.open(path)
    assert supplies[0].ring is not None
    supplies[0].ring.close()


@pytest.mark.parametrize("rows", [1, 33])
def test_weights_that_were_decoded_beforehand_give_the_same_bits(
    made: tuple[Supply, Supply, Checkpoint], rows: int, tmp_path: Path
) -> None:
    save(tmp_path / "model", "qwen2", torch.bfloat16, num_hidden_layers=2)
    store = LLM.prepare(tmp_path / "model", codec="delta", output=tmp_path / "store")
    plan = LLM.plan_only(store.path, memory="1GiB", context=64)
    assert plan.decoded == frozenset(range(len(store.linears))) and not plan.residents
    weights = Weights(store, plan, SETTINGS, Processor(1), drafts=True)
    supply = supply_of(weights)
    assert all(map(torch.equal, sweep(supply, rows), sweep(made[1], rows)))


def tiles(supply: Supply, index: int, rows: int) -> list[Tensor]:
    x = torch.zeros(-(-rows // TILE) * TILE, supply.linears[index].entry.shape[1], dtype=torch.bfloat16)
    x[:rows] = torch.randn(rows, x.shape[1], generator=torch.Generator().manual_seed(index))
    return list(x.split(TILE))


def sweep(supply: Supply, rows: int, first: int = 0) -> list[Tensor]:
    """All Linears in the order of a pass."""
    return [
        torch.cat(supply.multiply(index, tiles(supply, index, rows), rows))[:rows]
        for index in range(first, len(supply.linears))
    ]


@pytest.mark.parametrize("rows", [1, 33])
def test_a_sweep_multiplies_by_every_weight_and_reads_each_byte_once(
    made: tuple[Supply, Supply, Checkpoint], rows: int
) -> None:
    streaming, resident, checkpoint = made
    before = streaming.bytes_used
    streamed, kept = sweep(streaming, rows), sweep(resident, rows)
    assert streaming.bytes_used - before == sum(part.nbytes for parts in streaming.by_linear for part in parts) > 0
    assert resident.bytes_used == 0
    for index, (one, other) in enumerate(zip(streamed, kept, strict=True)):
        assert torch.equal(one, other), "the plan changes no bit"
        x = torch.cat(tiles(streaming, index, rows))[:rows].float()
        weight = checkpoint.read(streaming.linears[index].entry.weight).float()
        assert torch.allclose(one.float(), x @ weight.T, atol=5e-2, rtol=2e-2)


def test_parts_of_several_linears_that_lie_together_come_by_one_fetch(
    made: tuple[Supply, Supply, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming, _, _ = made
    ring = streaming.ring
    assert ring is not None
    asked: list[str] = []
    noted(monkeypatch, ring.tier, "fetch", asked)
    for _ in range(8):
        sweep(streaming, 1)
    hauls, parts = len(ring.tier.extents), len(streaming.berths)
    # how far the ring is ahead after a pass changes
    assert hauls < len(streaming.linears) <= parts and 7 * hauls <= len(asked) <= 9 * hauls
    assert not streaming._slots, "nothing is held once a pass is over"


def all_under_way(supply: Supply) -> None:
    """Wait until the device was asked for every copy that the ring has room for: a thread asks for those of the first passes."""
    assert supply.ring is not None and isinstance(supply.ring.tier, PinnedTier)
    # Whether it is full is asked where there is time to fill it.
    assert supply.ring.full in (True, False)
    staging = supply.ring.tier._staging
    while staging is not None and staging.busy:
        time.sleep(0.001)


@pytest.mark.parametrize("kept", [False, True], ids=["streamed", "mixed"])
@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_device_is_asked_for_few_pieces_of_work(
    codec: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each haul one decoding, one product, one copy and four events; the bits are those of parts that come one by one."""
    exact_product = pytest.importorskip("understudy.kernels.gpu.exact_product")
    # a part for each block of 64 outputs
    monkeypatch.setattr("understudy.weights.entries.PART_BYTES", 8192)
    save(tmp_path / "model", "llama", torch.bfloat16, num_hidden_layers=1, hidden_size=64, intermediate_size=192)
    store = LLM.prepare(tmp_path / "model", codec=codec, output=tmp_path / "store")
    plan = LLM.plan_only(store.path, memory="1GiB", resident="none", context=64)
    numbers = [part.number for part in streamable(list(store.linears.values()))]
    stay = frozenset(numbers[3:5] + numbers[-2:]) if kept else frozenset()
    found = []
    for most in (0, 32 << 20):
        monkeypatch.undo()
        monkeypatch.setattr(hauls, "MOST_BYTES", most)
        device = FakeDevice()
        weights = Weights(store, replace(plan, residents=stay), SETTINGS, device, drafts=False)
        supply = supply_of(weights)
        asked: list[str] = []
        for owner, name in ((device, "decode"), (device.simulated, "record"), (device.simulated, "copy")):
            noted(monkeypatch, owner, name, asked)
        noted(monkeypatch, exact_product, "multiply_rows", asked)
        found.append([*sweep(supply, 1), *sweep(supply, 33)])
        all_under_way(supply)
        asked.clear()
        sweep(supply, 1)
        all_under_way(supply)
        pieces = sum(len(step.runs) for steps in supply._steps.values() for step in steps)
        assert asked.count("multiply_rows") == pieces and asked.count("decode") == pieces * (codec == "delta")
        assert supply.ring is not None
        copies, used = asked.count("copy"), len(supply.ring.tier.extents)
        # the ring does not begin at the same place in each pass, so that one more or less has room
        assert abs(copies - used) <= 2 and asked.count("record") == 2 * copies + 2 * used
        supply.ring.close()
    assert pieces < len(numbers) - 2 and all(map(torch.equal, *found))


def noted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, asked: list[str]) -> None:
    """Note every call of a method."""
    method = getattr(owner, name)

    def noting(*given: object, **options: object) -> object:
        asked.append(name)
        return method(*given, **options)

    monkeypatch.setattr(owner, name, noting)


def test_a_pass_that_was_left_half_way_is_followed_by_a_right_one(made: tuple[Supply, Supply, Checkpoint]) -> None:
    streaming, resident, _ = made
    for reached in (0, 3, 7):
        for index in range(reached):
            streaming.multiply(index, tiles(streaming, index, 2), 2)
        streaming.abandon()
        assert all(torch.equal(a, b) for a, b in zip(sweep(streaming, 2), sweep(resident, 2), strict=True))


def test_a_pass_without_logits_skips_the_head(made: tuple[Supply, Supply, Checkpoint]) -> None:
    streaming, resident, _ = made
    for index in range(len(streaming.linears) - 1):
        streaming.multiply(index, tiles(streaming, index, 2), 2)
    streaming.skip_head()
    assert all(torch.equal(a, b) for a, b in zip(sweep(streaming, 2), sweep(resident, 2), strict=True))
