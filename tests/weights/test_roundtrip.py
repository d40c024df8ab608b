"""prepare, verify, export: every family comes back byte for byte, whatever the codec; a flipped bit anywhere is found and named."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, save
from understudy import LLM, demo
from understudy.codecs import CODECS
from understudy.errors import StoreError
from understudy.weights.export import export
from understudy.weights.store import Store


def returned(source: Path, codec: str, where: Path) -> None:
    """Prepare `source`, verify, export, and compare every file."""
    store = LLM.prepare(source, codec=codec, output=where / f"store-{codec}")
    assert store.recipe.codec == codec
    Store.open(store.path).verify()
    export(store, where / f"out-{codec}")
    assert files(where / f"out-{codec}") == files(source)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".md"}


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_every_family_comes_back(family: str, tmp_path: Path) -> None:
    save(tmp_path / "model", family, torch.bfloat16)
    for codec in CODECS:
        returned(tmp_path / "model", codec, tmp_path)
    # weights that are not published in FP8, or in four bits, are the same in three of them
    assert len({path.stat().st_size for path in tmp_path.glob("store-*/residual.bin")}) == len(CODECS) - 2


@pytest.mark.parametrize("codec", CODECS)
def test_the_demo_model_comes_back(codec: str, tmp_path: Path) -> None:
    returned(demo.path(), codec, tmp_path)


@pytest.fixture(scope="module", params=CODECS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    directory = tmp_path_factory.mktemp("whole")
    save(directory / "model", "llama", torch.bfloat16)
    return LLM.prepare(directory / "model", codec=request.param, output=directory / "store")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_named(whole: Store, data: st.DataObject) -> None:
    """In any byte that means something: of a tensor (not the padding between them), of the index, of a copied file."""
    extents = whole.extents
    names = [*sorted({stored.file for stored in extents}), "index.json", "config.json", "tokenizer.json"]
    file = whole.file(data.draw(st.sampled_from(names)))
    inside = [range(s.offset, s.offset + s.nbytes) for s in extents if whole.file(s.file) == file] or [
        range(file.stat().st_size)
    ]
    place = data.draw(st.sampled_from(data.draw(st.sampled_from(inside))))
    before = file.read_bytes()
    changed = bytearray(before)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(changed)
        try:
            alike = file.name == "index.json" and json.loads(changed) == json.loads(before)  # such as 1e-6 and 1E-6
        except ValueError:
            alike = False
        if not alike:
            with pytest.raises(StoreError) as caught:
                Store.open(whole.path).verify()
            assert file.name in str(caught.value) or (file.name == "index.json" and "newer" in str(caught.value))
            assert "\n" not in str(caught.value)
    finally:
        file.write_bytes(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_is_left_as_it_was(small_disk: Path, whole: Store) -> None:
    with pytest.raises(StoreError, match=r"No space left on device\. Free some space"):
        export(whole, small_disk / "out")
    assert list(small_disk.iterdir()) == []
    with pytest.raises(StoreError, match=r"free some space|Free some space"):
        LLM.prepare(whole.path.parent / "model", output=small_disk / "store")
    assert not (small_disk / "store").exists()
