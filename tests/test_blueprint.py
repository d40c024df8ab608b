"""A blueprint plans the same way whenever it is asked, works out what does not depend on the context once, and plans anew."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.fake_device import GIB, FakeDevice
from tests.tiny import COMMON, FAMILIES
from understudy import blueprint
from understudy.blueprint import CONTEXTS, Blueprint
from understudy.devices import Device
from understudy.devices.processor import Processor
from understudy.errors import UsageError
from understudy.models.footprint import sizes_of_checkpoint
from understudy.models.stock import structure
from understudy.models.streamed import attention_name
from understudy.options import Options
from understudy.plan.demand import MIB
from understudy.plan.machine import Gpu, Machine
from understudy.plan.memory import columns_of
from understudy.tiers import DiskProbe
from understudy.weights.recipe import Recipe

MACHINE = Machine(
    "a processor", 2, 8 * GIB, 8 * GIB, disk=DiskProbe(1e9, 1 << 20, 2, True, ""), memory_bandwidth=10e9
)


def made(
    tmp_path: Path, device: Device | None = None, positions: int = 8192, family: str = "llama", **given: Any
) -> Blueprint:
    """Of a small model that is not there: its sizes are foretold from its config."""
    options = Options.of({"codec": "raw", **given}, {"UNDERSTUDY_CACHE": str(tmp_path)})
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], "max_position_embeddings": positions})
    model = structure.skeleton(config, torch.bfloat16, attention_name())
    tensors = structure.foretold(model, torch.bfloat16, tmp_path)
    sizes = sizes_of_checkpoint(tensors, structure.layout(model, tensors), options.recipe, options.holds_substitute)
    place = {"machine": MACHINE, "device": device or Processor(), "options": options}
    return Blueprint(config=config, sizes=sizes, dtype=torch.bfloat16, **place)


def test_a_plan_is_that_of_the_longest_context_that_fits(tmp_path: Path) -> None:
    wide = made(tmp_path, memory="2GiB", rows=1)
    assert wide.plan() == wide.for_context(CONTEXTS[0]) and wide.plan().context == CONTEXTS[0]
    with pytest.raises(UsageError) as refusal:
        made(tmp_path, memory="1MiB", rows=1).for_context(1024)
    smallest = wide.least_for(1024)
    assert f"here is {-(-smallest // MIB)} MiB" in str(refusal.value)
    narrow = made(tmp_path, memory=smallest, rows=1)
    assert narrow.plan() == narrow.for_context(1024)
    with pytest.raises(UsageError, match="too small"):
        narrow.for_context(2048)


def test_a_gpu_that_nobody_asked_for_is_named(tmp_path: Path) -> None:
    machine = replace(MACHINE, gpu=Gpu("a card", 24 * GIB, 23 * GIB))
    hint = "a card is not used: --device cuda runs the model on it"
    for device, notes in (("auto", [hint]), ("cpu", [])):
        found = made(tmp_path, memory="1GiB")
        plan = replace(found, machine=machine, options=replace(found.options, device=device)).plan()
        assert [note for note in plan.notes if "a card" in note] == notes
    assert hint not in made(tmp_path, memory="1GiB").plan().notes


def test_the_context_that_was_asked_for_is_kept_to(tmp_path: Path) -> None:
    assert made(tmp_path, memory="1GiB", context=300).plan().context == 300
    assert made(tmp_path, memory="1GiB", positions=700).plan().context == 700
    with pytest.raises(UsageError, match="--context 701 is more than this model's 700 positions"):
        made(tmp_path, memory="1GiB", positions=700, context=701).plan()


def test_what_a_process_holds_more_is_planned_for(tmp_path: Path) -> None:
    whole = made(tmp_path, memory="1GiB", context=256, rows=1)
    assert whole.plan(grown=50 * MIB).items["runtime"] == whole.plan().items["runtime"] + 50 * MIB


def test_the_copy_of_a_plan_is_that_of_the_store_or_of_options(tmp_path: Path) -> None:
    foretold = made(tmp_path, memory="1GiB", context=256, bits=3)
    assert foretold.copy == foretold.plan().copy == "int3, head int8"
    store: Any = SimpleNamespace(recipe=Recipe("int6"))
    assert replace(foretold, store=store).copy == replace(foretold, store=store).plan().copy == "int6"


def test_rows_are_as_many_as_a_small_share_of_the_budget_holds(tmp_path: Path) -> None:
    assert made(tmp_path, memory="4GiB", context=256).request(256).rows == 8
    sequence = made(tmp_path).footprint.kv_bytes_per_token * (256 + 320)
    assert made(tmp_path, memory=int(3.5 * sequence / 0.04), context=256).request(256).rows == 3
    assert made(tmp_path, memory="4GiB", rows=5).request(256).rows == 5


def test_a_second_model_is_counted_and_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    footprint_of = blueprint.footprint_of
    monkeypatch.setattr(blueprint, "footprint_of", lambda *given: calls.append(given) or footprint_of(*given))
    both = replace(made(tmp_path, memory="1MiB", rows=1), second=made(tmp_path, quantizer="exact"))
    with pytest.raises(UsageError, match="too small"):
        both.plan()
    assert len(calls) == 2, "four contexts were tried, two models measured"
    roomy = replace(made(tmp_path, memory="1GiB", rows=1), second=both.second)
    plan = roomy.for_context(1024)
    assert both.second is not None and plan.items["draft model"] == both.second.footprint.alone(1, 1024 + 320, 0) > 0


def test_speeds_are_those_of_disk_and_memory(tmp_path: Path) -> None:
    speeds = made(tmp_path).speeds
    assert (speeds.link_bytes_per_second, speeds.memory_bytes_per_second) == (1e9, 10e9) and speeds.draft_levels > 0
    assert made(tmp_path, method="none").speeds.draft_levels == 0
    assert made(tmp_path, throttle=5e6).speeds.link_bytes_per_second == 5e6


class Counted(FakeDevice):
    """Counts how often its link is measured."""

    measured = 0

    def link_bytes_per_second(self, disk: float) -> float:
        self.measured += 1
        return 2e9


def test_a_device_is_measured_once_and_its_levels_are_counted(tmp_path: Path) -> None:
    device = Counted()
    placed = made(tmp_path, device, memory="2GiB", rows=1)
    plan = placed.plan()
    assert placed.plan() == plan and device.measured == 1
    assert plan.device == "fake" and plan.items["draft levels"] > 0 and plan.speeds.link_bytes_per_second == 2e9
    assert made(tmp_path, device, memory="2GiB", rows=1, method="none").plan().items["draft levels"] == 0
    with pytest.raises(UsageError, match="more than the 4 GiB that are free on fake"):
        made(tmp_path, device, memory="5GiB").plan()


@pytest.mark.parametrize(("asked", "free", "budget"), [(None, GIB, GIB), ("3GiB", GIB, GIB), ("1GiB", 2 * GIB, GIB)])
def test_less_memory_than_planned_is_planned_for_anew(tmp_path: Path, asked: Any, free: int, budget: int) -> None:
    placed = made(tmp_path, FakeDevice(), memory=asked, context=256, rows=1)
    plan = placed.replanned([free], "20 MiB were missing")
    assert plan.budget_bytes == budget and plan.used <= budget
    assert plan.notes[-1] == "fake had less memory than planned (20 MiB were missing): planned anew for 1 GiB"
    with pytest.raises(UsageError, match="too small"):
        placed.replanned([MIB], "hardly anything is left")


def test_states_and_records_of_recurrent_layers_are_counted_for_each_sequence(tmp_path: Path) -> None:
    wanted = {"family": "qwen3_5_text", "memory": "2GiB", "context": 512}
    one, three = (made(tmp_path, rows=rows, **wanted).plan() for rows in (1, 3))
    layers = [layer for layer in made(tmp_path, **wanted).shape.layers if layer.recurrent]
    row = sum(layer.recurrent.row_bytes(one.record_nodes, torch.bfloat16) for layer in layers if layer.recurrent)
    assert len(layers) == 3
    for plan in (one, three):
        tokens = made(tmp_path, **wanted).footprint.kv_bytes(columns_of(512, plan.scratch))
        assert plan.scratch == plan.passes.trees * plan.tile and plan.items["KV cache"] == plan.rows * (row + tokens)
    assert made(tmp_path, method="none", rows=1, **wanted).plan().record_nodes == 48, "a tile of a prompt needs so many records"


@pytest.mark.parametrize("method", ["ngram:length=49", "substitute:width=1,depth=49"])
def test_trees_that_are_too_deep_for_recurrent_layers_are_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--method {method} drafts 49 levels, and recurrent layers take back 48 at most"):
        made(tmp_path, family="qwen3_5_text", method=method, memory="2GiB").plan()
    made(tmp_path, method=method, memory="2GiB").plan()
