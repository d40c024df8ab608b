"""One way draws every model that is planned for: a Store, a checkpoint with or without one, a config alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.drawable import drawable, plan_for
from understudy.options import Options
from understudy.plan.other_machine import OtherMachine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("drawable") / "model"
    save(path, "llama", torch.bfloat16)
    return path


def options(tmp_path: Path, **given: Any) -> Options:
    chosen = {"memory": "1GiB", "context": 256, "rows": 1, "codec": "raw", **given}
    return Options.of(chosen, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})


def test_a_store_that_is_there_is_planned_for_and_a_checkpoint_can_still_be_drawn_otherwise(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    chosen = options(tmp_path)
    before = drawable(model, chosen, as_it_is=True)
    assert before.foretold is not None and before.changeable
    assert before.plan().notes == ("not prepared yet: sizes are foretold, and the link is the checkpoint's",)
    store = LLM.prepare(model, codec="raw")
    as_it_is, any_way = drawable(model, chosen, as_it_is=True), drawable(model, chosen)
    assert as_it_is.foretold is None and not as_it_is.changeable and as_it_is.directory == store.path
    assert any_way.changeable and any_way.drawn(replace(chosen, recipe_quantizer="int2")).footprint.substitute_bytes > 0
    assert plan_for(model, chosen).items == plan_for(store.path, chosen).items and not plan_for(model, chosen).notes


def test_notes_say_what_is_foretold_and_for_which_machine(model: Path, tmp_path: Path) -> None:
    other = OtherMachine.parse("cpu:memory=2GB,disk=1GB/s,bandwidth=60GB/s")
    here = plan_for(model, options(tmp_path), config_alone=True)
    there = plan_for(model, options(tmp_path), other, config_alone=True)
    link = "there is no link to measure (--for describes a machine)"
    assert here.notes == (f"from the config alone: sizes are foretold, and {link}",)
    assert there.notes == ("from the config alone: sizes are foretold", other.note)
    assert plan_for(model, options(tmp_path), other).notes == ("not prepared yet: sizes are foretold", other.note)
