"""A whole study of a tiny model: heads are trained and judged, and what is done is not done again."""

import fcntl
import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scaling.made import speed
from tests.tiny import save
from understudy.drafters.start import FILE, Start
from understudy.errors import UsageError
from understudy.scaling.laws import Speed
from understudy.scaling.run import Scale, ScaleOrder
from understudy.scaling.speed import Way
from understudy.training import run as training

TEXTS = [
    f"The {colour} {animal} sat on the {place}, and then the {animal} slept. " * 3
    for colour, animal, place in product(("red", "old"), ("cat", "dog", "hen"), ("mat", "roof", "wall", "bed"))
]


def quiet(stage: str, done: float, total: float) -> None:
    """Reports nothing."""


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> ScaleOrder:
    folder = tmp_path_factory.mktemp("scale")
    save(folder / "model", "llama", torch.bfloat16)
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return ScaleOrder(
        str(folder / "model"), folder / "study", (texts,), depths=(1, 2), budgets=(300, 600), batch_tokens=256, measured=200,
        prompts=2, prompt_tokens=24, new_tokens=12, levels=3, batches=(), options={"context": 128},
    )  # fmt: skip


def test_a_study_goes_on_where_it_was_and_trains_nothing_twice(order: ScaleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    train, trained = training.train, []

    def counted(asked: training.Order, report: training.Report) -> training.Trained:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(asked.output.name)
        return train(asked, report)

    monkeypatch.setattr(training, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        Scale(order, quiet).run()
    monkeypatch.setattr(training, "train", lambda asked, report: trained.append(asked.output.name) or train(asked, report))
    study = Scale(order, quiet).run()
    names = [f"eagle-depth{depth}-tokens{tokens}" for tokens in (300, 600) for depth in (1, 2)]
    assert trained == names and [one.cell.name for one in study.found] == names
    assert {(law.of, law.at) for law in study.laws} >= {("T", "D = 1"), ("D", "T = 300"), ("T", "mean")}
    assert all(1 <= one.tokens_per_pass <= 4 and one.judged > 0 and len(one.positions) == 3 for one in study.found)
    for one in study.found:
        assert Start.beside(Path(one.head)).tokens_per_pass == one.tokens_per_pass and (Path(one.head) / FILE).is_file()


def test_a_finished_study_only_reads_its_records(order: ScaleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    Scale(order, quiet).run()
    for name in ("understudy.scaling.run.judge", "understudy.training.run.train"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("something is done again"))
    assert len(Scale(order, quiet).run().found) == 4
    with pytest.raises(UsageError, match="with seed 0, not 1: choose another directory"):
        Scale(replace(order, seed=1), quiet)


def test_speeds_are_those_of_passes_that_were_run(order: ScaleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(order, batches=(1,), widths=(1,))
    study = Scale(asked, quiet).run()
    assert [(speed.method.partition(":")[0], speed.depth) for speed in study.speeds] == [("none", 0), ("eagle", 1), ("eagle", 2)]
    assert study.speeds[0].tokens_per_pass == 1 and all(1 < speed.verified <= 4 for speed in study.speeds[1:])
    assert study.advice.head in {speed.head for speed in study.speeds} and "fastest at batch 1" in study.advice.why
    monkeypatch.setattr("understudy.scaling.run.measured", lambda *_: pytest.fail("a speed is measured again"))
    assert Scale(asked, quiet).run().speeds == study.speeds


def test_heads_that_are_there_are_judged_and_none_is_trained(order: ScaleOrder) -> None:
    heads = [Path(one.head) for one in Scale(order, quiet).run().found]
    given = replace(order, heads=tuple(heads[:2]), output=order.output.with_name("given"))
    found = Scale(given, quiet).run().found
    again = {one.head: one.tokens_per_pass for one in Scale(order, quiet).run().found}
    assert all(one.cell.tokens >= 300 for one in found)
    assert [(one.head, one.tokens_per_pass) for one in found] == [(str(head), again[str(head)]) for head in heads[:2]]


def test_what_cannot_be_measured_is_said_before_any_work(order: ScaleOrder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 texts at once need as many prompts"):
        replace(order, batches=(1, 8))
    with pytest.raises(UsageError, match="There is no file"):
        Scale(replace(order, data=(tmp_path / "nothing",)), quiet)
    save(tmp_path / "other", "qwen2", torch.bfloat16)
    head = order.output / "heads" / "eagle-depth1-tokens300"
    with pytest.raises(UsageError, match="take a head that"):
        Scale(replace(order, model=str(tmp_path / "other"), heads=(head,), output=tmp_path / "study"), quiet)
    for kind, said in (("nosuch", "No head 'nosuch'"), ("eagle:depth=2", "depth is given twice"), ("medusa:heads=0", "1 or more")):
        with pytest.raises(UsageError, match=said):
            Scale(replace(order, head=kind, output=tmp_path / "study"), quiet)
    for wrong, said in (({"rate": float("nan")}, "--rate must be"), ({"options": {"context": 8}}, "--context must be 32 or more")):
        with pytest.raises(UsageError, match=said):
            Scale(replace(order, output=tmp_path / "study", **wrong), quiet)
    with pytest.raises(UsageError, match="give --new-tokens 3 or more"):
        replace(order, new_tokens=2)
    assert not (tmp_path / "study").exists(), "nothing keeps a study of this name from being another one"


def test_too_few_texts_are_told_before_any_head_is_trained(
    order: ScaleOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.training.run.train", lambda *_: pytest.fail("a head is trained"))
    asked = replace(order, output=tmp_path / "study", prompts=99, batches=(99,))
    with pytest.raises(UsageError, match="texts kept apart are long enough, where 99 are needed"):
        Scale(asked, quiet).run()


def test_heads_that_look_alike_are_no_others(order: ScaleOrder, tmp_path: Path) -> None:
    """A head has figures of its own, also where it stands where another stood, and none is left out silently."""
    first, second = (Path(one.head) for one in Scale(order, quiet).run().found if one.cell.depth == 1)
    for name, head in (("one", first), ("two", second)):
        shutil.copytree(head, tmp_path / name)
        (tmp_path / name / "training.json").write_text('{"tokens": 500}')
    given = replace(order, heads=(tmp_path / "one",), output=tmp_path / "study")
    [one] = Scale(given, quiet).run().found
    [two] = Scale(replace(given, heads=(tmp_path / "two",)), quiet).run().found
    assert one.cell.place == two.cell.place == ("eagle", 1, 500)
    known = {found.head: found.tokens_per_pass for found in Scale(order, quiet).run().found}
    assert (one.head, one.tokens_per_pass) == (str(tmp_path / "one"), known[str(first)])
    assert (two.head, two.tokens_per_pass) == (str(tmp_path / "two"), known[str(second)])
    assert len(list((given.output / "cells").glob("eagle-depth1-tokens500-*.json"))) == 2
    with pytest.raises(UsageError, match=r"one and .*two are alike for a study \(eagle, 1 decoder layers, 500 tokens\): give one"):
        Scale(replace(given, heads=(tmp_path / "one", tmp_path / "two")), quiet)


def test_a_study_that_was_moved_is_the_same(order: ScaleOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Scale(order, quiet).run()
    shutil.copytree(order.output, tmp_path / "moved")
    monkeypatch.setattr("understudy.scaling.run.judge", lambda *_: pytest.fail("something is done again"))
    moved = Scale(replace(order, output=tmp_path / "moved"), quiet).run()
    assert [one.tokens_per_pass for one in moved.found] == [one.tokens_per_pass for one in study.found]
    assert all(Path(one.head).is_relative_to(tmp_path / "moved") for one in moved.found)


def test_a_speed_is_that_of_the_options_that_are_given(order: ScaleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(order, depths=(1,), budgets=(300,), batches=(1,), widths=(1,))
    Scale(asked, quiet).run()
    with monkeypatch.context() as patched:
        patched.setattr("understudy.scaling.run.measured", lambda *_: pytest.fail("a speed is measured again"))
        Scale(asked, quiet).run()
    measured: list[str] = []

    def counted(model: Path, way: Way, prompts: Any, params: Any, options: dict[str, Any]) -> Speed:
        measured.append(options["resident"])
        return speed(1, 1, 1)

    monkeypatch.setattr("understudy.scaling.run.measured", counted)
    Scale(replace(asked, options={**asked.options, "resident": "none"}), quiet).run()
    assert measured == ["none"] * 2
    with pytest.raises(UsageError, match="with context 128, not 96: choose another directory"):
        Scale(replace(asked, options={"context": 96}), quiet)


def test_no_other_process_works_on_a_study_meanwhile(order: ScaleOrder, tmp_path: Path) -> None:
    refused = [0]

    def report(stage: str, done: float, total: float) -> None:
        if "judging heads" in stage:
            with (tmp_path / "study" / "lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused[0] += 1

    heads = (Path(Scale(order, quiet).run().found[0].head),)
    Scale(replace(order, heads=heads, output=tmp_path / "study"), report).run()
    assert refused[0] and not (tmp_path / "study" / "lock").exists()
