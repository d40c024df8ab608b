"""A row times its expert's exact matrix has the same bits alone, in company, and wherever the matrix lies; no other is brought."""

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
from understudy.errors import StoreError
from understudy.models.mixtures.expert_supply import ExpertSupply
from understudy.models.mixtures.routed import Routed
from understudy.models.stream.supply import Supply
from understudy.models.stream.weights import Weights
from understudy.plan.placement import Plan
from understudy.tiers import ReadSettings
from understudy.tiers.ring import smallest_ring
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.store import Store

SETTINGS = ReadSettings(block=65536, threads=2)
EXPERTS = 8


def supply_of(store: Store, plan: Plan, ring_bytes: int = 0) -> Supply:
    """The supply of a plan, with a ring as small as may be unless it is told."""
    weights = Weights(store, plan, SETTINGS, Processor(1), drafts=bool(plan.decoded))
    hauls = weights.hauls(1 << 20)
    ring_bytes = ring_bytes or (smallest_ring([haul.extent.nbytes for haul in hauls], 1) if hauls else 0)
    return Supply(weights.parts, weights.linears, weights.residents, hauls, weights.ring(ring_bytes, hauls))


class Made:
    """One model, its parts in several places."""

    def __init__(self, path: Path, codec: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        save(path, "qwen3_moe", dtype, num_hidden_layers=2)
        self.source = Checkpoint.open(path)
        self.store = LLM.prepare(path, codec=codec, output=path.parent / "store")
        self.plan = LLM.plan_only(self.store.path, memory="1GiB", resident="none", context=64)
        decoded = LLM.plan_only(self.store.path, memory="1GiB", context=64)
        parts = range(sum(len(entry.parts) for entry in self.store.linears.values()))
        plans = {
            "streamed": self.plan,
            "resident": replace(self.plan, residents=frozenset(parts)),
            "mixed": replace(self.plan, residents=frozenset(number for number in parts if number % 3)),
            "decoded": decoded,
        }
        self.supplies = {name: supply_of(self.store, plan) for name, plan in plans.items()}
        entries = list(self.store.linears.values())
        # by layer: both products of its experts
        self.mixtures = [(i, i + 1) for i in range(len(entries) - 1) if entries[i].experts and entries[i + 1].experts]
        assert len(self.mixtures) == 2 and decoded.decoded and not decoded.residents

    def rows(self, index: int, count: int, seed: int) -> torch.Tensor:
        columns = list(self.store.linears.values())[index].shape[1]
        return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)).to(self.dtype)


@pytest.fixture(scope="module", params=["raw-bfloat16", "delta-bfloat16", "raw-float32", "delta-float32", "raw-float16"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    codec, _, dtype = request.param.partition("-")
    model = Made(tmp_path_factory.mktemp("experts") / "model", codec, getattr(torch, dtype))
    yield model
    for supply in model.supplies.values():
        if supply.ring is not None:
            supply.ring.close()


def layer(supply: Supply, numbers: tuple[int, int], tiles: list[Routed]) -> list[torch.Tensor]:
    """Both products of a layer's experts, the second of a part of what the first gives."""
    first = supply.multiply(numbers[0], tiles, 0)
    inner = [tile.with_rows(y[:, :64].contiguous()) for tile, y in zip(tiles, first, strict=True)]
    return [*first, *supply.multiply(numbers[1], inner, 0)]


@given(
    chosen=st.lists(st.lists(st.integers(0, EXPERTS - 1), max_size=40), min_size=1, max_size=3),
    which=st.integers(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bits_depend_on_the_row_and_its_expert_alone(made: Made, chosen: list[list[int]], which: int, seed: int) -> None:
    """In tiles of any rows, some without any, next to any others; and only the experts that have rows are brought."""
    numbers = made.mixtures[which]
    experts = [torch.tensor(sorted(each), dtype=torch.int64) for each in chosen]
    tiles = [Routed(made.rows(numbers[0], len(own), seed + i), own) for i, own in enumerate(experts)]
    found = {}
    for name, supply in made.supplies.items():
        before = supply.bytes_used
        found[name] = layer(supply, numbers, tiles)
        if name == "streamed":
            used = {expert for each in chosen for expert in each}
            parts = [(part, supply.linears[part.linear]) for number in numbers for part in supply.by_linear[number]]
            wanted = sum(p.nbytes for p, own in parts if p.first_block // (own.entry.shape[0] // EXPERTS // 64) in used)
            assert supply.bytes_used - before == wanted
    for others in found.values():
        assert all(map(torch.equal, found["streamed"], others)), "a plan changes no bit"
    for place, tile in enumerate(tiles):
        for row in range(0, len(tile.rows), 7):
            alone = Routed(tile.rows[row : row + 1], tile.experts[row : row + 1])
            first, second = layer(made.supplies["mixed"], numbers, [alone])
            assert torch.equal(first[0], found["streamed"][place][row])
            assert torch.equal(second[0], found["streamed"][len(tiles) + place][row])


def test_numbers_are_those_of_the_checkpoints_matrices(made: Made) -> None:
    (first, last), tolerance = made.mixtures[1], 2e-2 if made.dtype == torch.bfloat16 else 2e-3
    for index in (first, last):
        entry = made.supplies["streamed"].linears[index].entry
        whole = torch.cat([made.source.read(name) for name in entry.spec.tensors]).float().view(EXPERTS, -1, entry.shape[1])
        x = Routed(made.rows(index, EXPERTS, 1), torch.arange(EXPERTS))
        (found,) = made.supplies["resident"].multiply(index, [x], 0)
        wanted = torch.stack([whole[i] @ row.float() for i, row in enumerate(x.rows)])
        assert (found.float() - wanted).norm() / wanted.norm() < tolerance


def test_a_pass_that_is_left_among_experts_is_followed_by_a_right_one(made: Made) -> None:
    """Left after one product of two, before both, or within one, where an error comes."""
    streaming, kept, (first, second) = made.supplies["streamed"], made.supplies["resident"], made.mixtures[0]
    tile = Routed(made.rows(first, 5, 3), torch.tensor([0, 3, 3, 6, 7]))
    expected = layer(kept, (first, second), [tile])
    for cut in ("none", "first", "within"):
        if cut == "first":
            streaming.multiply(first, [tile], 0)
        elif cut == "within":
            ExpertSupply(streaming)._hint(first, tile.counts(EXPERTS))
            next(iter(streaming.arriving(streaming.experts.parts[first][0], together=False)))
        streaming.abandon()
        assert all(map(torch.equal, layer(streaming, (first, second), [tile]), expected)), cut
    assert streaming.ring is not None
    streaming.abandon()


def test_what_does_not_arrive_is_an_error_and_the_next_pass_is_right(tmp_path: Path) -> None:
    made = Made(tmp_path / "model", "raw", torch.bfloat16)
    (first, second), tile = made.mixtures[0], Routed(made.rows(made.mixtures[0][0], 2, 3), torch.tensor([1, 5]))
    expected = layer(made.supplies["resident"], (first, second), [tile])
    supply = made.supplies["streamed"]
    residual = made.store.path / "residual.bin"
    whole = residual.read_bytes()
    # of expert 1, which has two: gates lie apart from what they gate
    stored = list(made.store.linears.values())[first].parts[2].stored
    damaged = bytearray(whole)
    damaged[stored.offset + 5] ^= 1
    with residual.open("r+b") as file:
        file.write(damaged)
    with pytest.raises(StoreError, match=r"residual\.bin"):
        layer(supply, (first, second), [tile])
    with residual.open("r+b") as file:
        file.write(whole)
    supply.abandon()
    assert all(map(torch.equal, layer(supply, (first, second), [tile]), expected))
    assert supply.ring is not None
    supply.ring.close()
