"""A Store is built tensor by tensor: what was done before a kill is kept, and what cannot be stored is refused by name."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.errors import CheckpointError, StoreError
from understudy.weights import building
from understudy.weights.checkpoint import Checkpoint, TensorInfo
from understudy.weights.encoding import Encoding
from understudy.weights.layout import LinearSpec
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe

from .made import layout, mixture, tall, tensors, write


def _checkpoint(tmp_path: Path, **options: object) -> Checkpoint:
    return Checkpoint.open(write(tmp_path / "model", tensors(**options)))  # type: ignore[arg-type]


class _Stop(Exception):
    pass


class _Watch:
    """Notes which tensors are worked on, and stops at the one named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: str = "") -> None:
        self.made: list[str] = []
        linear, copy = building.Building._linear, building.Building._copy

        def watched_linear(made: building.Building, spec: object, *given: object) -> object:
            self._note(spec.module, stop_at)  # type: ignore[attr-defined]
            return linear(made, spec, *given)  # type: ignore[arg-type]

        def watched_copy(made: building.Building, info: TensorInfo, checked: bool, linkable: bool) -> object:
            self._note(info.name, stop_at)
            return copy(made, info, checked, linkable)

        monkeypatch.setattr(building.Building, "_linear", watched_linear)
        monkeypatch.setattr(building.Building, "_copy", watched_copy)

    def _note(self, name: str, stop_at: str) -> None:
        if name == stop_at:
            raise _Stop(name)
        self.made.append(name)


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    whole = prepare(checkpoint, layout(checkpoint), tmp_path / "whole", Recipe())
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        before = _Watch(patch, stop_at="layers.1.up")
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    with monkeypatch.context() as patch:
        after = _Watch(patch)
        store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    assert after.made[0] == "layers.1.up" and not set(before.made) & set(after.made)
    for name in ("substitute.bin", "residual.bin", "shared.bin", "index.json"):
        assert store.file(name).read_bytes() == whole.file(name).read_bytes()
    store.verify()


def test_a_kill_before_all_is_on_the_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)

    def killed(path: Path) -> None:
        raise _Stop(path)

    with monkeypatch.context() as patch, pytest.raises(_Stop):
        patch.setattr(building, "synced", killed)
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    watch = _Watch(monkeypatch)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    store.verify()
    assert watch.made == [] and not any("journal" in path.name for path in store.path.iterdir())


def test_the_next_weights_are_encoded_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    plan = layout(checkpoint)
    order: list[str] = []
    linear, piece = building.Building._linear, Encoding.piece

    def written(made: building.Building, spec: LinearSpec, *given: Any) -> object:
        row = linear(made, spec, *given)
        order.append(f"written {spec.weight}")
        return row

    def encoded(encoding: Encoding, *part: int) -> object:
        order.append(f"begun {encoding.info.name}")
        return piece(encoding, *part)

    monkeypatch.setattr(building.Building, "_linear", written)
    monkeypatch.setattr(Encoding, "piece", encoded)
    # parts of one size, each weight a part of its own
    store = prepare(checkpoint, plan, tmp_path / "store", Recipe(codec="delta"))
    first, second = (spec.weight for spec in plan.linears[:2])
    assert order.index(f"begun {second}") < order.index(f"written {first}")
    assert [name for name in order if name.startswith("written")] == [f"written {spec.weight}" for spec in plan.linears]
    for spec in plan.linears:
        rows = torch.cat(list(store.rows_of(store.linears[spec.module])))
        assert torch.equal(rows, checkpoint.read(spec.weight)), spec.weight


def test_damage_to_what_was_done_before_the_kill_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        _Watch(patch, stop_at="layers.1.up")
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    residual = tmp_path / "store.partial" / "residual.bin"
    residual.write_bytes(residual.read_bytes()[:100_000])  # as after a power cut: the journal knows more than the disk
    with (tmp_path / "store.partial" / "journal.jsonl").open("a") as journal:
        journal.write('{"key": "linear layers.1.')
    watch = _Watch(monkeypatch)
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()).verify()
    assert "layers.0.down" in watch.made and "embed.weight" not in watch.made


def test_other_options_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        _Watch(patch, stop_at="layers.1.up")
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="int8"))
    assert {entry.quantizer for entry in store.linears.values()} == {"int8"}
    store.verify()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("codec", ["delta", "raw", "link"])
@pytest.mark.parametrize("name", ["layers.1.down.weight", "layers.0.up.bias", "embed.weight", "head.weight"])
def test_what_is_no_number_is_refused_by_name(
    tmp_path: Path, name: str, codec: str, dtype: torch.dtype, value: float
) -> None:
    made = tensors(dtype, tied=False)
    made[name].view(-1)[-5] = value
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    with pytest.raises(CheckpointError, match=rf"{name}.*(NaN|infinity)"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec=codec))
    assert not (tmp_path / "store").exists()


def test_what_is_no_number_and_not_used_is_kept(tmp_path: Path) -> None:
    made = tensors()
    made["rotary.inverse"][1] = float("-inf")
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()).verify()


def test_uneven_shapes_are_kept(tmp_path: Path) -> None:
    made = tensors(hidden=100)  # 32 does not divide 100: kept whole
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    assert {entry.quantizer for entry in store.linears.values()} == {"exact"}
    store.verify()


def test_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    made = tensors()
    made["layers.0.up.weight"] = made["layers.0.up.weight"].to(torch.float8_e4m3fn)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    with pytest.raises(CheckpointError, match=r"layers\.0\.up\.weight.*not quantised"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())


def test_too_little_space_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and _Usage())
    with pytest.raises(StoreError, match=r"needs [1-9]\d* MB more.*UNDERSTUDY_CACHE"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())


class _Usage:
    free = 1000


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO"])
def test_disk_full_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    import errno

    checkpoint = _checkpoint(tmp_path)
    written = 0
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 500_000:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="--output") as caught:
        patch.setattr(os, "pwrite", full)
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()).verify()


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    seen: list[tuple[float, float]] = []
    note = lambda done, total, name: seen.append((done, total))  # noqa: E731
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(), progress=note)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and seen == sorted(seen)


@pytest.mark.parametrize("codec", ["raw", "delta", "link"])
@pytest.mark.parametrize("pieces", [True, False])
def test_experts_are_kept_bit_for_bit(pieces: bool, codec: str, tmp_path: Path) -> None:
    made = mixture(pieces)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made, shards=3))
    plan = layout(checkpoint)
    store = prepare(checkpoint, plan, tmp_path / "store", Recipe(codec=codec))
    store.verify()
    assert list(store.extra) == ["rotary.inverse"], "no expert is kept twice"
    for spec in plan.linears:
        entry = store.linears[spec.module]
        assert entry.spec == spec and entry.codec == codec
        assert torch.equal(torch.cat(list(store.rows_of(entry))), tall(made, spec))
        unit = -(-spec.unit // 64)
        assert all(part.first_block // unit == (part.first_block + part.blocks - 1) // unit for part in entry.parts)
        assert not spec.experts or len(entry.parts) == len(spec.pieces or range(spec.experts))


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize("stop_at", ["layers.0.experts.last", "layers.1.experts.halves"])
def test_experts_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: bool, stop_at: str) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces), shards=2))
    whole = prepare(checkpoint, layout(checkpoint), tmp_path / "whole", Recipe(codec="delta"))
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        before = _Watch(patch, stop_at)
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"))
    after = _Watch(monkeypatch)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"))
    assert after.made[0] == stop_at and not set(before.made) & set(after.made)
    for name in ("substitute.bin", "residual.bin", "shared.bin", "index.json"):
        assert store.file(name).read_bytes() == whole.file(name).read_bytes()


def test_experts_in_another_order_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces=True)))
    plan = layout(checkpoint)
    with monkeypatch.context() as patch, pytest.raises(_Stop):
        _Watch(patch, stop_at="head")
        prepare(checkpoint, plan, tmp_path / "store", Recipe())
    names = next(spec for spec in plan.linears if spec.experts).pieces
    other = tuple(
        replace(spec, pieces=(names[0], *names[:0:-1])) if spec.pieces == names else spec for spec in plan.linears
    )
    watch = _Watch(monkeypatch)
    prepare(checkpoint, replace(plan, linears=other), tmp_path / "store", Recipe()).verify()
    assert "embed.weight" in watch.made


@pytest.mark.parametrize("damage", ["type", "rows", "missing", "number"])
def test_experts_that_cannot_be_stored_are_refused_before_any_work(tmp_path: Path, damage: str) -> None:
    made = mixture(pieces=True, rows=96 if damage == "rows" else 64)
    name = "layers.1.experts.4.w3.weight"
    if damage == "type":
        made[name] = made[name].float()
    elif damage == "number":
        made[name][-1, -1] = float("nan")
    path = write(tmp_path / "model", made)
    plan = layout(Checkpoint.open(path))
    if damage == "missing":
        del made[name]
        write(path, made)
    words = {"type": "is float32, and", "rows": "has 96 rows", "missing": f"no tensor '{name}'", "number": f"'{name}' holds NaN"}
    with pytest.raises(CheckpointError, match=words[damage]) as caught:
        prepare(Checkpoint.open(path), plan, tmp_path / "store", Recipe())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "store.partial").exists() == (damage == "number"), "what no number is shows only as weights are read"


def test_what_is_stored_anew_leaves_nothing_behind(tmp_path: Path) -> None:
    """A weight that the codec does not make smaller: its copy is not written twice."""
    made = mixture(pieces=True)
    words = torch.randint(-(2**15), 2**15, (64, 128), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    for name in made:
        if "layers.0.experts" in name and "w2" not in name:
            made[name] = torch.where(words & 0x7F80 == 0x7F80, 0, words).to(torch.int16).view(torch.bfloat16)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"))
    store.verify()
    assert [name for name, entry in store.linears.items() if entry.codec == "raw"] == ["layers.0.experts.halves"]
    for file in ("substitute.bin", "residual.bin"):
        extents = [stored for stored in store.extents if stored.file == file]
        assert sum(stored.padded for stored in extents) == store.file(file).stat().st_size
