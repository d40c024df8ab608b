"""A model of the hub is its directory in the cache; what goes wrong on the way is one line."""

from pathlib import Path

import pytest
from huggingface_hub import errors

from understudy.errors import CheckpointError, UsageError
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.hub import name_and_revision

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


CASES = [("a/b", None, None), ("a/b@v1", None, "v1"), ("a/b", "refs/pr/3", "refs/pr/3"), ("a/b@main", "main", "main")]


@pytest.mark.parametrize(("model", "given", "revision"), CASES)
def test_a_revision_is_part_of_the_name_or_given(model: str, given: str | None, revision: str | None) -> None:
    assert name_and_revision(model, given) == ("a/b", revision)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("a/b@v1", "v2", "name two revisions"),
        ("a/b@", None, "no revision of a/b"),
        ("a/b", "", "no revision"),
        ("a/b@../../etc", None, "no revision"),
        ("a/b@v1@v2", None, "no revision"),
        ("a/b", "-x y", "no revision"),
    ],
)
def test_what_can_be_no_revision_is_wrong_use(model: str, given: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Checkpoint.open(model, offline=True, revision=given)


def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A cache of the hub with two commits of someone/something: `main` names the first, the tag `v2` the second."""
    place = tmp_path / "hub" / "models--someone--something"
    commits = {"main": "a" * 40, "v2": "b" * 40}
    (place / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(commits.items()):
        (place / "refs" / name).write_text(commit)
        write(place / "snapshots" / commit, {key: tensor + seed for key, tensor in tensors().items()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return {name: place / "snapshots" / commit for name, commit in commits.items()}


def test_a_revision_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = hub_cache(tmp_path, monkeypatch)
    main = Checkpoint.open("someone/something", offline=True)
    assert main.path == places["main"]
    tagged = Checkpoint.open("someone/something@v2", offline=True)
    assert tagged.path == places["v2"] and tagged.fingerprint != main.fingerprint
    assert Checkpoint.open("someone/something", offline=True, revision="v2").path == places["v2"]
    assert Checkpoint.open("someone/something", offline=True, revision="b" * 40).path == places["v2"]
    with pytest.raises(CheckpointError, match=r"someone/something at v3 is not in the local cache"):
        Checkpoint.open("someone/something@v3", offline=True)


def test_a_revision_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> str:
        assert options["revision"] == "v3"
        raise errors.RevisionNotFoundError("404", response=_Response())  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="someone/something has no revision 'v3'"):
        Checkpoint.open("someone/something@v3")
