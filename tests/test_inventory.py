"""What is on disk, what belongs to what, and what is of no use any more; `understudy ls` and `rm` show and delete it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from tests.tiny import save
from understudy import LLM
from understudy.frontends import main
from understudy.inventory import CHANGED, DAMAGED, UNFINISHED, inventory
from understudy.weights.holding import Hold
from understudy.weights.writing import only_process

HUB = "org/small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine: a model of the hub and one in a directory, with a Store each, and one more that links to it."""
    root = tmp_path_factory.mktemp("machine")
    snapshot = root / "hub" / "models--org--small" / "snapshots" / ("0" * 40)
    for place, family in ((snapshot, "llama-tied"), (root / "own", "qwen2")):
        save(place, family, torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CACHE", str(root / "cache"))
        patch.chdir(root)
        # as the hub's client answers
        patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
        LLM.prepare(HUB, codec="raw")
        # a directory is found again from anywhere
        LLM.prepare("own", codec="raw")
        LLM.prepare(root / "own", link=True)
    return root


@pytest.fixture
def machine(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change, in the place of the one that was made."""
    for name in ("hub", "cache"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["ls", "--json"]) == 0
    return {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}


def test_stores_belong_to_their_checkpoints(made: Path, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = listed(capsys)
    own = str(made / "own")
    assert list(models) == [own, HUB] and [models[name]["kind"] for name in models] == ["directory", "hub"]
    assert [len(models[name]["stores"]) for name in models] == [2, 1]
    assert not any(store["stale"] or store["in_use"] for model in models.values() for store in model["stores"])
    for model in models.values():
        for store in model["stores"]:
            files = list(Path(store["path"]).iterdir())
            assert store["bytes"] == sum(file.stat().st_size for file in files) > 0
    assert main(["ls"]) == 0
    said = capsys.readouterr().out
    assert f"{HUB} (hub)" in said and f"Store {Path(models[own]['stores'][0]['path']).name} (int4" in said


def test_what_is_of_no_use_any_more_is_stale(made: Path, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = machine / "cache"
    stores = {model.name: model.stores for model in inventory(cache)}
    config = machine / "hub" / "models--org--small" / "snapshots" / ("0" * 40) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "changed"}))
    (raw,) = [store.path for store in stores[str(made / "own")] if "raw" in store.path.name]
    (raw / "residual.bin").write_bytes(b"")
    (cache / "half.partial").mkdir()
    (cache / "half.partial" / "residual.bin").write_bytes(b"x" * 1000)
    found = {store.path: store for model in inventory(cache) for store in model.stores if store.trouble}
    assert found[stores[HUB][0].path].trouble == CHANGED and found[raw].trouble == DAMAGED
    assert found[cache / "half.partial"].trouble == UNFINISHED and len(found) == 3
    assert main(["ls"]) == 0 and "rm --stale" in capsys.readouterr().out
    # one that is being made is left alone, and so is all else then
    with only_process(cache / "half.lock", lambda: None):
        assert main(["rm", "--stale", "--yes"]) == 1
        assert "being made" in capsys.readouterr().err and all(path.is_dir() for path in found)
    assert main(["rm", "--stale", "--yes", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["bytes"] == sum(store.nbytes for store in found.values()) and not any(path.exists() for path in found)
    assert main(["rm", "--stale"]) == 0 and "Nothing is stale" in capsys.readouterr().err


def test_a_model_is_deleted_with_its_stores_unless_in_use(made: Path, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store,) = (store for model in inventory(machine / "cache") if model.name == HUB for store in model.stores)
    hold = Hold()
    hold.add(store.path)
    assert listed(capsys)[HUB]["stores"][0]["in_use"]
    assert main(["rm", HUB, "--yes"]) == 1
    said = capsys.readouterr().err
    assert "in use by a running process" in said and said.count("\n") == 1 and store.path.is_dir()
    hold.close()
    # nobody can be asked here
    assert main(["rm", HUB]) == 2 and "Give --yes" in capsys.readouterr().err
    assert main(["rm", HUB, "--stores", "--yes"]) == 0 and not store.path.exists()
    assert main(["rm", HUB, "--yes"]) == 0 and not (machine / "hub" / "models--org--small").exists()
    assert list(listed(capsys)) == [str(made / "own")]


def test_directories_of_ones_own_stay(made: Path, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = str(made / "own")
    assert main(["rm", own, "--yes"]) == 0
    assert (made / "own" / "model.safetensors").is_file()
    wrong = (["rm"], "Name what to delete"), (["rm", own], "no model or Store"), (["rm", "org/smal"], "Did you mean org/small?")
    for words, says in wrong:
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


def test_a_running_model_holds_its_files(made: Path, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLM(made / "own", codec="raw", context=64, rows=1):
        model = listed(capsys)[str(made / "own")]
        assert model["in_use"] and [store["in_use"] for store in model["stores"] if "raw" in store["recipe"]] == [True]
    assert not listed(capsys)[str(made / "own")]["in_use"]
