"""A model of the hub is its directory in the cache; what goes wrong on the way is one line."""

from pathlib import Path

import pytest
from huggingface_hub import errors

from understudy.errors import CheckpointError
from understudy.weights.checkpoint import Checkpoint

from .made import tensors, write


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "a/b/c", ""])
def test_path_that_is_not_there(name: str) -> None:
    if name:
        with pytest.raises(CheckpointError, match="No directory"):
            Checkpoint.open(name)


class _Response:
    status_code, headers, text, url, request = 404, {}, "", "", None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (errors.HFValidationError("bad"), "not a Hugging Face id"),
        (errors.LocalEntryNotFoundError("gone"), "local cache"),
        (errors.OfflineModeIsEnabled("off"), "local cache"),
        (OSError("no space\nleft"), "failed: no space"),
    ],
)
def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str) -> None:
    def refuse(*given: object, **options: object) -> str:
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint.open("someone/something")
    assert "\n" not in str(caught.value)


def test_hub_model_is_its_cached_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "snapshot", tensors())
    asked: dict[str, object] = {}

    def found(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    assert Checkpoint.open("someone/something", offline=True).path == path
    assert asked["name"] == "someone/something" and asked["local_files_only"] is True
