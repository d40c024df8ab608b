"""A Store of mixed bits: chosen once by measured errors, kept in the journal, whole and exact like any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from understudy.quantizers.inputs import Inputs
from understudy.weights import building
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.export import export
from understudy.weights.layout import LinearSpec
from understudy.weights.measuring import Note
from understudy.weights.mixing import errors_of, quantizers_of
from understudy.weights.prepare import estimate, prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, mixture, tensors, write
from .test_building import _Stop, _Watch


def _checkpoint(tmp_path: Path, made: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint.open(write(tmp_path / "model", made))


def _hard() -> dict[str, Tensor]:
    """A model of which one weight has heavy tails."""
    torch.manual_seed(0)
    made = tensors(tied=False, layers=4)
    name = "layers.2.up.weight"
    tails = torch.distributions.StudentT(2.2).sample(made[name].shape) * 0.05
    return {**made, name: tails.to(torch.bfloat16)}


@pytest.mark.parametrize("codec", ["raw", "delta"])
@pytest.mark.parametrize("quantizer", ["mixed:bits=3.5", "int3", "int2", "int3:group=16"])
def test_whole_and_back(tmp_path: Path, quantizer: str, codec: str) -> None:
    checkpoint = _checkpoint(tmp_path, _hard())
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer=quantizer, codec=codec))
    store.verify()
    entries = store.linears.values()
    assert {entry.codec for entry in entries} == {codec}
    export(Store.open(store.path), tmp_path / "back")
    for file in (tmp_path / "model").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    size = sum(path.stat().st_size for path in store.path.iterdir() if path.suffix == ".bin")
    assert abs(estimate(checkpoint, layout(checkpoint), Recipe(quantizer, codec)) - size) < 0.1 * size


def test_errors_decide_within_the_average(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, _hard())
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="mixed"))
    entries = store.linears
    taken = {name: sum(s.nbytes for s in entry.substitute.values()) for name, entry in entries.items()}
    weights = sum(entry.shape[0] * entry.shape[1] for entry in entries.values())
    assert sum(taken.values()) * 8 <= 3.5 * weights
    assert len({entry.quantizer for entry in entries.values()}) > 1
    assert taken["layers.2.up"] > min(taken[f"layers.{i}.up"] for i in (0, 1, 3))


def test_a_head_has_its_own_bits_where_its_shape_allows_them(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, tensors(tied=False))
    made = layout(checkpoint)
    for head, found in (("", "int4"), ("int8", "int8")):
        assert quantizers_of(made, Recipe(head=head)) == ["int4"] * (len(made.linears) - 1) + [found]
    narrow = replace(made, linears=(*made.linears[:-1], LinearSpec("head", "head.weight", (200, 48))))
    assert quantizers_of(narrow, Recipe("int3:group=16", head="int8"))[-1] == "int3:group=16", "32 does not divide 48"
    store = prepare(checkpoint, made, tmp_path / "store", Recipe(codec="delta", head="int8"))
    assert [entry.quantizer for entry in store.linears.values()][-2:] == ["int4", "int8"]
    assert {entry.codec for entry in store.linears.values()} == {"delta"}
    store.verify()


def _alike(squares: Tensor) -> Inputs:
    """Independent inputs with these mean squares."""
    return Inputs(squares, torch.zeros(len(squares), 0))


def test_inputs_that_are_never_used_do_not_count(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, _hard())
    spec = next(spec for spec in layout(checkpoint).linears if spec.module == "layers.2.up")
    inputs = _alike(torch.tensor([float(i >= 64) for i in range(128)]))
    made = checkpoint.read(spec.weight)
    assert made.shape[0] == 384
    free, weighed = errors_of(checkpoint, spec, None), errors_of(checkpoint, spec, inputs)
    assert free["int2:group=64"] > free["int3"] > free["int4"] > free["int8"] > 0
    halves = [
        errors_of(checkpoint, spec, _alike(torch.tensor([float(i // 64 == half) for i in range(128)]))) for half in range(2)
    ]
    assert weighed == pytest.approx(halves[1]) and weighed != pytest.approx(halves[0])


def test_the_choice_outlives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path, _hard())
    whole = prepare(checkpoint, layout(checkpoint), tmp_path / "whole", Recipe(quantizer="mixed"))
    measured: list[int] = []

    def measure(note: Note) -> None:
        measured.append(1)
        for _ in layout(checkpoint).linears:
            note(None)

    with monkeypatch.context() as patch, pytest.raises(_Stop):
        _Watch(patch, stop_at="layers.1.up")
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="mixed"), measure=measure)
    with monkeypatch.context() as patch:
        patch.setattr(building, "errors_of", lambda *given: pytest.fail("measured again"))
        store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="mixed"), measure=measure)
    assert measured == [1, 1], "once a run: for the mix and for the copies"
    assert [e.quantizer for e in store.linears.values()] == [e.quantizer for e in whole.linears.values()]
    for name in ("substitute.bin", "residual.bin"):
        assert store.file(name).read_bytes() == whole.file(name).read_bytes()


def test_another_average_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path, _hard())
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        _Watch(patch, stop_at="layers.1.up")
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="mixed:bits=3"))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="mixed:bits=11"))
    assert {entry.quantizer for entry in store.linears.values()} == {"int8"}


@pytest.mark.parametrize("pieces", [True, False])
def test_a_mix_samples_experts_too(tmp_path: Path, pieces: bool) -> None:
    checkpoint = _checkpoint(tmp_path, mixture(pieces))
    specs = [spec for spec in layout(checkpoint).linears if spec.experts]
    for spec in specs:
        errors = errors_of(checkpoint, spec, None)
        assert errors["int2:group=64"] > errors["int3"] > errors["int4"] > errors["int8"] > 0
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe("mixed:bits=3.5", "delta"))
    store.verify()
    assert all(store.linears[spec.module].quantizer != "exact" for spec in specs)
