"""Files that are cut short, missing or changed are found when a Store is opened, without reading any weight."""

import os
from pathlib import Path

import pytest

from understudy.errors import StoreError
from understudy.weights import integrity
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, tensors, write


def _store(tmp_path: Path, codec: str = "raw") -> Store:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    return prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec=codec))


@pytest.mark.parametrize("name", ["substitute.bin", "residual.bin", "shared.bin"])
def test_a_file_that_is_cut_short_or_gone_is_named(tmp_path: Path, name: str) -> None:
    store = _store(tmp_path)
    os.truncate(store.file(name), store.file(name).stat().st_size - 4096)
    with pytest.raises(StoreError, match=rf"{name} is missing or cut short"):
        integrity.check(store.path, store)
    store.file(name).unlink()
    with pytest.raises(StoreError, match=rf"{name} is missing or cut short"):
        integrity.check(store.path, store)


def test_a_copied_file_that_changed_is_named(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.file("tokenizer.json").write_text("[]")
    for check in (integrity.check_copied, lambda path, source: integrity.check(path, store)):
        with pytest.raises(StoreError, match=r"tokenizer\.json is missing or was changed"):
            check(store.path, store.source)


def test_linked_files_are_those_outside_of_the_store(tmp_path: Path) -> None:
    assert integrity.linked_files(_store(tmp_path / "raw").extents) == {}
    store = _store(tmp_path / "linked", "link")
    source = tmp_path / "linked" / "model" / "model.safetensors"
    assert store.source.linked == integrity.linked_files(store.extents)
    assert store.source.linked == {str(source): (source.stat().st_size, source.stat().st_mtime_ns)}


def test_a_source_that_was_only_touched_is_compared_by_its_content(tmp_path: Path) -> None:
    store = _store(tmp_path, "link")
    source = tmp_path / "model" / "model.safetensors"
    os.utime(source, ns=(1, 1))
    integrity.check(store.path, store)
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
    with pytest.raises(StoreError, match=r"model\.safetensors was changed.*--link"):
        integrity.check(store.path, store)
    source.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"model\.safetensors was changed"):
        integrity.check(store.path, store)
    source.unlink()
    with pytest.raises(StoreError, match=r"model\.safetensors is gone"):
        integrity.check(store.path, store)
