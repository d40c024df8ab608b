"""An index reads back as it was written, in the form that older versions wrote; another form is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.errors import StoreError
from understudy.weights import index
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.entries import Contents
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, mixture, tensors, write


def _store(tmp_path: Path) -> Store:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors(), shards=2))
    return prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe("int4:group=32", "delta"))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = _store(tmp_path)
    contents = index.load(store.path)
    assert {name: getattr(store, name) for name in vars(contents)} == vars(contents)
    linked = {"/model/model.safetensors": (123, 456)}
    changed = replace(contents, source=replace(contents.source, linked=linked), recipe=Recipe("mixed:bits=3", "link"))
    for recipe in (Recipe("mixed:bits=3", "link"), Recipe("int4", "delta", "abc", "int8"), Recipe("int8", "raw", head="int4")):
        index.save(replace(changed, recipe=recipe), store.file("index.json"))
        assert index.load(store.path).recipe == recipe
    index.save(changed, store.file("index.json"))
    assert index.load(store.path) == changed != contents


def test_the_form_is_that_of_format_1(tmp_path: Path) -> None:
    """Every key that a version of this format reads is there, also the head's quantiser, which was always the same."""
    store = _store(tmp_path)
    body = json.loads(store.file("index.json").read_text())
    content = body["content"]
    assert body["understudy_store"] == 1
    assert set(content) == {"source", "recipe", "embedding_name", "linears", "embedding", "shared", "extra"}
    assert set(content["source"]) == {"name", "fingerprint", "shards", "files", "linked"}
    assert content["recipe"] == {"quantizer": "int4:group=32", "head_quantizer": "int4:group=32", "codec": "delta"}
    del content["source"]["linked"]  # older indexes have none
    body["checksum"] = index.digest(content)
    store.file("index.json").write_text(json.dumps(body, indent=1))
    assert Store.open(store.path) == store


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    body = json.loads(store.file("index.json").read_text())
    body["understudy_store"] += 1
    store.file("index.json").write_text(json.dumps(body))
    with pytest.raises(StoreError, match="newer"):
        Store.open(store.path)


def test_what_is_not_a_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a Store"):
        Store.open(tmp_path)
    (tmp_path / "half.partial").mkdir()
    for name in ("half", "half.partial"):
        with pytest.raises(StoreError, match="not finished"):
            Store.open(tmp_path / name)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(StoreError, match="not the index"):
        Store.open(tmp_path)


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.file("config.json").write_text("{")
    with pytest.raises(StoreError, match=r"config\.json cannot be read"):
        Store.open(store.path)
    assert isinstance(index.load(store.path), Contents), "the index itself is whole"


@pytest.mark.parametrize("pieces", [True, False])
def test_experts_are_told_where_there_are_any(pieces: bool, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces), shards=2))
    made = layout(checkpoint)
    store = prepare(checkpoint, made, tmp_path / "store", Recipe())
    assert Store.open(store.path).layout == made
    rows = json.loads(store.file("index.json").read_text())["content"]["linears"]
    for spec, row in zip(made.linears, rows, strict=True):
        assert row.get("experts", 0) == spec.experts and tuple(row.get("pieces", ())) == spec.pieces
        assert ("experts" in row, "pieces" in row) == (bool(spec.experts), bool(spec.pieces)), "an older version reads the others"
