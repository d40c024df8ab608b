"""A Store is made once, whole or not at all, by one process, where nothing else lies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from understudy.errors import StoreError
from understudy.weights import building
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.prepare import estimate, prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, mixture, write
from .test_building import _checkpoint, _Watch


def test_second_time_finds_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    first = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    watch = _Watch(monkeypatch)
    assert prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()) == first
    assert watch.made == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]
    assert not (first.path / "journal.jsonl").exists()


PREPARE = """
import sys; sys.path[:0] = {paths!r}
from made import layout
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
checkpoint = Checkpoint.open({model!r})
prepare(checkpoint, layout(checkpoint), {store!r}, Recipe(), progress=lambda done, total, name: print(name, flush=True))
"""


def _command(tmp_path: Path) -> list[str]:
    source = str(Path(building.__file__).parents[2])
    here = str(Path(__file__).parent)
    script = PREPARE.format(paths=[here, source], model=str(tmp_path / "model"), store=str(tmp_path / "store"))
    return [sys.executable, "-c", script]


def test_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path, layers=9)
    with subprocess.Popen(_command(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "layers.3.up":
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "store").exists()
    watch = _Watch(monkeypatch)
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()).verify()
    assert "layers.2.up" not in watch.made and "layers.8.up" in watch.made


def test_two_processes_at_once(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, layers=6)
    running = [subprocess.Popen(_command(tmp_path), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    Store.open(tmp_path / "store").verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"]
    assert checkpoint.fingerprint == Store.open(tmp_path / "store").source.fingerprint


def test_who_waits_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    said: list[str] = []
    inside = threading.Event()
    finish = building.Building._finish

    def slow(made: building.Building, store: Store) -> Store:
        inside.set()
        end = time.monotonic() + 60
        while not said and time.monotonic() < end:
            time.sleep(0.01)
        return finish(made, store)

    monkeypatch.setattr(building.Building, "_finish", slow)
    first = threading.Thread(target=prepare, args=(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()))
    first.start()
    inside.wait()
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(), progress=lambda done, total, name: said.append(name))
    first.join()
    assert said == ["waiting for another process to prepare it"]


def test_other_content_in_the_way(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    (tmp_path / "store").mkdir()
    prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())  # an empty directory is not in the way
    with pytest.raises(StoreError, match="another Store"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer="int8"))
    with pytest.raises(StoreError, match="other files"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "model", Recipe())


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:  # who may write anywhere: refuse as the kernel would

        def refuse(*given: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("understudy.weights.writing.os.open", refuse)
    with pytest.raises(StoreError, match=r"locked failed: Permission denied.*--output"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "locked" / "store", Recipe())


def test_file_where_the_directory_should_be(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--output"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "file" / "store", Recipe())


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize("codec", ["raw", "delta", "link"])
def test_the_size_of_experts_is_foretold(tmp_path: Path, pieces: bool, codec: str) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces), shards=2))
    foretold = estimate(checkpoint, layout(checkpoint), Recipe(codec=codec))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec=codec))
    size = sum(path.stat().st_size for path in store.path.iterdir() if path.suffix == ".bin")
    assert abs(foretold - size) < 0.1 * size
