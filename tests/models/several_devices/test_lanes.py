"""Several devices give the tokens of one, whatever each of them holds; one that is lost or full is said in one line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import GIB, FakeDevice
from tests.several_devices import GREEDY, PROMPTS, four_nodes, llm, prepared, simulated
from understudy import LLM
from understudy.devices import DEVICES
from understudy.errors import UnderstudyError, UsageError
from understudy.frontends import main
from understudy.models.several_devices.lanes import JoinedSupply, open_lanes, refuse_other_bits
from understudy.models.stream.supply import Supply
from understudy.models.stream.weights import Weights
from understudy.models.target import TILE
from understudy.tiers import ReadSettings

SETTINGS = ReadSettings(block=65536, threads=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = prepared(tmp_path_factory.mktemp("lanes"))
    yield path
    assert {len(entry.parts) for entry in LLM.prepare(path / "raw").linears.values()} >= {1, 2}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    four_nodes(monkeypatch)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    return simulated(monkeypatch)


@pytest.mark.parametrize("method", ["none", "substitute"])
def test_processors_give_the_tokens_of_one(store: Path, nodes: None, method: str) -> None:
    """By the processor's own product and by residuals, streamed from every device or kept."""
    with llm(store / "delta", None, method=method) as one:
        plain = [done.token_ids for done in one.generate(PROMPTS, GREEDY)]
        streamed = one.plan.streamed_bytes
    for devices, resident in (("cpu:0,cpu:1,cpu:2", "none"), ("cpu:1,cpu:0", "auto")):
        with llm(store / "delta", devices, method=method, resident=resident) as many:
            done = many.generate(PROMPTS, GREEDY)
            plans = [many.plan, *many.plan.lanes]
            assert [completion.token_ids for completion in done] == plain
            assert all(plan.parts for plan in plans)
            assert sum(len(plan.parts or ()) for plan in plans) == len(many.model.weights.stored)
            if resident == "none":
                assert len(many.model.rings) == 3 and all(ring.stats.bytes_read > 0 for ring in many.model.rings)
                assert many.plan.streamed_bytes == streamed and many.model.supply.bytes_used % streamed == 0
                assert done[0].stats.bytes_streamed > 0
                split = zip(many.model.weights.portions, many.model.lanes[0].portions, strict=True)
                assert any(mine.blocks and theirs.blocks for mine, theirs in split), "of some Linear, both have blocks"
            else:
                assert not many.model.rings and many.plan.streamed_bytes == 0
                assert all(plan.items["resident weights"] > 0 for plan in plans)
            assert (done[0].stats.accepted > 0) == (method == "substitute")


def test_simulated_devices_give_the_tokens_of_one(store: Path, fakes: list[FakeDevice]) -> None:
    """Their copies are late and in any order, and each has a stream of its own."""
    with llm(store / "raw", None, device="fake", method="none") as one:
        plain = [done.token_ids for done in one.generate(PROMPTS, GREEDY)]
    with llm(store / "raw", "fake:0,fake:1,fake:2") as many:
        done = many.generate(PROMPTS, GREEDY)
        assert [completion.token_ids for completion in done] == plain and done[0].stats.accepted > 0
        assert all(device.simulated.copied > 1 << 18 for device in fakes[1:])
        # A pass that is left half way is begun anew on all of them.
        many.model.supply.abandon()
        assert [completion.token_ids for completion in many.generate(PROMPTS, GREEDY)] == plain
        held = [device.held for device in fakes[1:]]
    assert all(device.held < before for device, before in zip(fakes[2:], held[1:], strict=True)), "lanes give their memory back"


def test_the_interpreted_kernels_of_a_gpu_decode_and_multiply_portions(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their products, joined, have the bits of one device's by all blocks."""
    pytest.importorskip("triton")
    monkeypatch.setattr(fake_device, "numbered", lambda *, number=0: FakeDevice(seed=number, name=f"fake:{number}"), raising=False)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:numbered")
    opened = LLM.prepare(store / "delta")
    asked = {"devices": "fake:0,fake:1", "split": "blocks", "memory": "2GiB", "resident": "none", "context": 128, "method": "none"}
    plan = LLM.plan_only(store / "delta", **asked)
    first, further = FakeDevice(seed=2), FakeDevice(seed=3, name="fake:1")
    weights = Weights(opened, plan, SETTINGS, first, drafts=False)
    alone = Weights(opened, replace(plan, parts=None, lanes=()), SETTINGS, FakeDevice(seed=4), drafts=False)
    whole, own = (
        Supply(one.parts, one.linears, one.residents, hauls, one.ring(plan.ring_bytes, hauls))
        for one, hauls in ((alone, alone.hauls(plan.ring_bytes)), (weights, weights.hauls(plan.ring_bytes)))
    )
    lanes = open_lanes([further], plan, opened, SETTINGS)
    joined = JoinedSupply(own, weights.portions, lanes, [entry.shape[0] for entry in weights.entries])
    both = 0
    for index, linear in enumerate(alone.linears[:7]):
        x = torch.sin(torch.arange(TILE * linear.columns) * 0.37).view(TILE, -1).to(torch.bfloat16)
        assert torch.equal(joined.multiply(index, [x], 5)[0][:5], whole.multiply(index, [x], 5)[0][:5])
        both += bool(weights.portions[index].blocks and lanes[0].portions[index].blocks)
    assert both > 0 and joined.bytes_used == whole.bytes_used
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize("split", ["blocks", "stages"])
def test_an_error_of_a_lane_fails_one_request_and_the_next_works(
    store: Path, fakes: list[FakeDevice], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    with llm(store / "raw", "fake:0,fake:1", split, method="none") as many:
        plain = many.generate(PROMPTS, GREEDY)[0].token_ids
        supply = many.model.lanes[0].supply
        assert supply is not None
        multiply, calls = supply.multiply, []

        def full(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")
            return multiply(*given)

        monkeypatch.setattr(supply, "multiply", full)
        with pytest.raises(UnderstudyError, match=r"^The device ran out of memory in this request \(.*20.00 GiB\)"):
            many.generate([[9, 9, 4]], GREEDY)
        assert many.generate(PROMPTS, GREEDY)[0].token_ids == plain and len(calls) > 3


@pytest.mark.parametrize("split", ["blocks", "stages"])
def test_memory_taken_on_one_of_them_after_planning_is_planned_for_once(
    store: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    class Shared(FakeDevice):
        """Somebody else takes `theirs` of its memory when the first is asked for."""

        theirs = 0

        def arena(self, nbytes: int) -> torch.Tensor:
            if self.theirs:
                self.taken, self.theirs = self.theirs, 0
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. And so on.")
            return super().arena(nbytes)

    def numbered(theirs: int) -> Any:
        def made(*, number: int = 0) -> FakeDevice:
            device = Shared(capacity=3 * GIB, triton=False, name=f"fake:{number}")
            device.link_bytes_per_second = lambda disk: 1e9  # type: ignore[method-assign]
            device.theirs = theirs if number == 1 else 0
            return device

        return made

    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:numbered")
    monkeypatch.setattr(fake_device, "numbered", numbered(GIB), raising=False)
    with llm(store / "raw", "fake:0,fake:1", split, method="none", memory="2.5GiB") as many:
        assert many.generate(PROMPTS, GREEDY)[0].token_ids
        assert "fake:1 had less memory than planned" in many.plan.notes[-1] and "planned anew for 1.9 GiB" in many.plan.notes[-1]
        assert many.plan.budget_bytes == 2.5 * GIB and many.plan.lanes[0].budget_bytes == int(2 * GIB * 0.95)
    monkeypatch.setattr(fake_device, "numbered", numbered(int(2.9 * GIB)))
    with pytest.raises(UsageError, match=r"^fake:1: --memory .* is too small: the smallest that works there is \d+ MiB\.$"):
        llm(store / "raw", "fake:0,fake:1", split, method="none")


def test_a_device_that_multiplies_with_other_bits_is_refused() -> None:
    def device(name: str, off: float) -> Any:
        made = FakeDevice(triton=False, name=name)

        def multiply(x: torch.Tensor, blocks: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_(torch.einsum("nk,bkm->nbm", x.float(), blocks.float()) + off)

        made.row_product = lambda: multiply  # type: ignore[method-assign]
        return made

    class Now:
        def __init__(self, device: FakeDevice) -> None:
            self.device = device

        def run(self, work: Any) -> Any:
            return type("Done", (), {"result": staticmethod(work)})

    refuse_other_bits(device("fake:0", 0.0), [Now(device("fake:1", 0.0))])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"^fake:2 multiplies with other bits than fake:0: --devices takes devices of one kind"):
        refuse_other_bits(device("fake:0", 0.0), [Now(device("fake:2", 0.05))])  # type: ignore[list-item]


def test_the_command_plans_and_runs_over_devices(
    store: Path, fakes: list[FakeDevice], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [str(store / "raw"), "--memory", "2GiB", "--resident", "none", "--context", "128", "--json"]
    assert main(["plan", *words, "--devices", "fake:0,fake:1", "--split", "blocks"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [lane["device"] for lane in plan["lanes"]] == ["fake:1"] and plan["lanes"][0]["streamed"] > 0
    assert any("so that links of 1.0 and 1.0 GB/s end together" in note for note in plan["notes"])
    texts = []
    for where in (["--device", "fake"], ["--devices", "fake:0,fake:1", "--split", "blocks"]):
        ids = ["--prompt-ids", "5,99,5", "--max-new-tokens", "4", "--ignore-eos"]
        assert main(["run", *words, *ids, *where]) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["token_ids"] == texts[1]["token_ids"] and len(texts[0]["token_ids"]) == 4
    assert main(["run", *words, "--prompt-ids", "5", "--devices", "fake:0,fake:0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "understudy: --devices names fake:0 twice."
