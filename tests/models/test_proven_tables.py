"""Large tables are compared with their checksums once, and again when their file has changed."""

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.errors import StoreError
from understudy.models.proven_tables import FILE, prove_tables
from understudy.weights.entries import Stored
from understudy.weights.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    save(tmp_path / "model", "llama", torch.bfloat16)
    return LLM.prepare(tmp_path / "model", calibrate="none", output=tmp_path / "store")


def read(monkeypatch: pytest.MonkeyPatch, store: Store, always: int) -> int:
    """How many tables are read whole."""
    seen: list[Stored] = []
    with monkeypatch.context() as patch:
        whole = Store.prove
        patch.setattr(Store, "prove", lambda self, table: (seen.append(table), whole(self, table)))
        prove_tables(store, store.looked_up, always)
    return len(seen)


def test_small_tables_are_read_at_every_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [read(monkeypatch, store, 1 << 30) for _ in range(2)] == [1, 1]
    assert not (store.path / FILE).exists()


def test_a_large_one_is_read_once_and_when_it_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [read(monkeypatch, store, 0) for _ in range(3)] == [1, 0, 0]
    (table,) = store.looked_up
    file = store.file(table.file)
    data = bytearray(file.read_bytes())
    data[table.offset + 5] ^= 1
    file.write_bytes(data)
    for _ in range(2):
        with pytest.raises(StoreError, match="is damaged in bytes"):
            prove_tables(store, store.looked_up, 0)
    data[table.offset + 5] ^= 1
    file.write_bytes(data)
    assert [read(monkeypatch, store, 0) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("said", ["", "[]", "{", json.dumps({"model.safetensors": 3})])
def test_a_record_of_another_form_is_none(said: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.path / FILE).write_text(said)
    assert [read(monkeypatch, store, 0) for _ in range(2)] == [1, 0]
