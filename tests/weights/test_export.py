"""Export gives back the source's files, byte for byte, or nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.errors import StoreError
from understudy.weights import entries
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.entries import Stored
from understudy.weights.export import export
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, mixture, tall, tensors, write


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("quantizer", "codec"), [("int4", "raw"), ("int4", "delta"), ("exact", "raw")])
def test_same_files(tmp_path: Path, shards: int, dtype: torch.dtype, quantizer: str, codec: str) -> None:
    source = write(tmp_path / "model", tensors(dtype, tied=shards == 1), shards)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    checkpoint = Checkpoint.open(source)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer=quantizer, codec=codec))
    export(store, tmp_path / "out")
    assert _contents(source) == _contents(tmp_path / "out")


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


ODD_TYPES = [torch.uint16, torch.uint32, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64, torch.float64, torch.bool]


@pytest.mark.parametrize("dtype", ODD_TYPES)
def test_a_tensor_that_nobody_needs_may_be_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    made = tensors() | {"mask": torch.ones(3, 5).to(dtype), "nothing": torch.empty(0, 4, dtype=dtype)}
    source = write(tmp_path / "model", made)
    if dtype == torch.uint32:  # and of one that is not known at all
        file = source / "model.safetensors"
        file.write_bytes(file.read_bytes().replace(b'"U32"', b'"F2x"'))
    checkpoint = Checkpoint.open(source)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    store.verify()
    export(store, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_damage_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    data = bytearray(store.file("residual.bin").read_bytes())
    data[5000] ^= 4
    store.file("residual.bin").write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"residual\.bin"):
        export(store, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]


def test_disk_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StoreError, match=r"No space left.*another directory"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_does_not_overwrite(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    with pytest.raises(StoreError, match="not empty"):
        export(store, tmp_path / "model")


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize(("quantizer", "codec"), [("int4", "raw"), ("int4", "delta"), ("int4", "link"), ("exact", "raw")])
def test_experts_come_back_wherever_they_lie(tmp_path: Path, shards: int, pieces: bool, quantizer: str, codec: str) -> None:
    source = write(tmp_path / "model", mixture(pieces), shards)
    checkpoint = Checkpoint.open(source)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer=quantizer, codec=codec))
    seen: list[tuple[float, float]] = []
    export(store, tmp_path / "out", lambda done, total, name: seen.append((done, total)))
    assert _contents(source) == _contents(tmp_path / "out")
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert seen[-2][0] < seen[-2][1], "what comes last is counted, too"


def test_a_weight_of_many_tensors_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces=True), shards=3))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"))
    read: list[Stored] = []
    plain = Store.read

    def counted(self: Store, stored: Stored, into: Tensor | None = None) -> Tensor:
        read.append(stored)
        return plain(self, stored, into)

    monkeypatch.setattr(Store, "read", counted)
    export(store, tmp_path / "out")
    extents = [stored for entry in store.linears.values() for stored in entry.extents]
    own = [stored for stored in extents if stored not in store.linears["head"].extents]
    assert [stored for stored in read if stored in own] and all(read.count(stored) == 1 for stored in own)


@settings(max_examples=25)
@given(
    pieces=st.booleans(),
    rows=st.sampled_from([64, 128, 320]),
    experts=st.integers(1, 6),
    part=st.sampled_from([1, 40 << 10, 8 << 20]),
    codec=st.sampled_from(["raw", "delta", "link"]),
    shards=st.integers(1, 6),
    order=st.integers(0, 99),
)
def test_experts_of_any_number_come_back(
    pieces: bool, rows: int, experts: int, part: int, codec: str, shards: int, order: int
) -> None:
    made = mixture(pieces, rows=rows, experts=experts)
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "PART_BYTES", part)
        source = write(Path(place) / "model", made, shards, order)
        checkpoint = Checkpoint.open(source)
        store = prepare(checkpoint, layout(checkpoint), Path(place) / "store", Recipe(codec=codec))
        store.verify()
        for spec in (spec for spec in store.layout.linears if spec.experts):
            parts = store.linears[spec.module].parts
            units = {place for p in parts for place in (p.first_block * 64 // spec.unit,)}
            assert units == set(range(spec.shape[0] // spec.unit))
            assert all((p.first_block * 64) // spec.unit == ((p.first_block + p.blocks) * 64 - 1) // spec.unit for p in parts)
            assert part > 1 or all(p.blocks == 1 for p in parts)
            assert torch.equal(torch.cat(list(store.rows_of(store.linears[spec.module]))), tall(made, spec))
        export(store, Path(place) / "out")
        assert _contents(source) == _contents(Path(place) / "out")
