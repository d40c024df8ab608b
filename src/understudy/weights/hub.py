"""Models of the Hugging Face hub, as directories of its cache."""

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError

SINGLE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
WANTED = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
# Other formats and copies live in folders.
UNWANTED = ["*/*"]


# Branches, tags and commits.
REVISION = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


def name_and_revision(model: str, revision: str | None) -> tuple[str, str | None]:
    """The name of `model`, which may be "owner/model@revision", and its revision; None: the main one.

    Raises UsageError where `revision` names another one, and for what can be no revision."""
    name, mark, own = model.partition("@")
    if mark and revision not in (None, own):
        raise UsageError(f"{model} and --revision {revision} name two revisions: give one of them.")
    chosen = own if mark else revision
    if chosen is not None and not REVISION.fullmatch(chosen):
        raise UsageError(f"{chosen!r} is no revision of {name}: give a branch, a tag or a commit.")
    return name, chosen


def download(model: str, offline: bool, revision: str | None = None, wanted: Sequence[str] = WANTED) -> Path:
    """The directory of `model`, at a `revision` (None: the main one); downloads what the cache lacks unless `offline`. Names of the
    files that are taken are like one of `wanted`."""
    name, revision = name_and_revision(model, revision)
    with _explained(model, name, revision, offline):
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            name, revision=revision, allow_patterns=list(wanted), ignore_patterns=UNWANTED, local_files_only=offline
        )
        return Path(found)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model of the hub."""

    name: str
    # 0: the hub does not say.
    nbytes: int
    # Is it in the cache already?
    here: bool


@dataclass(frozen=True)
class RemoteModel:
    """A model of the hub at one commit, and the files of it that runs need."""

    name: str
    commit: str
    # Where its files are, or will be.
    path: Path
    files: tuple[RemoteFile, ...]

    @property
    def missing(self) -> int:
        """Bytes that are not here yet."""
        return sum(file.nbytes for file in self.files if not file.here)

    def fetch(self, report: Callable[[float, float], None]) -> None:
        """Download what is missing: files that an earlier try got whole stay. `report` is told bytes so far, and all there are."""
        total = float(sum(file.nbytes for file in self.files))
        with _explained(self.name, self.name, self.commit, offline=False):
            from huggingface_hub import snapshot_download
            from tqdm.auto import tqdm

            class ToldProgress(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
                """Tells `report` in the place of a bar."""

                def __init__(self, *given: Any, **options: Any):
                    options.pop("name", None)
                    super().__init__(*given, **{**options, "disable": False, "file": io.StringIO()})

                def display(self, *_: Any, **__: Any) -> None:
                    if self.unit == "B" and self.n:
                        report(min(float(self.n), total), total)

            names = [file.name for file in self.files]
            snapshot_download(self.name, revision=self.commit, allow_patterns=names, tqdm_class=ToldProgress)


def remote(model: str, revision: str | None) -> RemoteModel:
    """What runs need of `model` at a `revision` (None: the main one). Its small files are downloaded, since they name its weights.

    Raises CheckpointError where it cannot be reached, or has no weights that can be used."""
    name, revision = name_and_revision(model, revision)
    small = [pattern for pattern in WANTED if not pattern.endswith(".safetensors")]
    with _explained(model, name, revision, offline=False):
        from huggingface_hub import errors, snapshot_download

        try:
            found = snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, dry_run=True)
        except errors.DryRunError as error:
            # What the hub answered says more.
            raise error.__cause__ if isinstance(error.__cause__, errors.HfHubHTTPError) else error from None
        files = [RemoteFile(one.filename, one.file_size or 0, one.is_cached) for one in found]
        weights = [file for file in files if file.name.endswith(".safetensors")]
        if not weights or not any(file.name == "config.json" for file in files):
            lacks = "model.safetensors" if not weights else "config.json"
            raise CheckpointError(f"{name} has no {lacks} on the hub: give the safetensors checkpoint of a model.")
        path = Path(snapshot_download(name, revision=found[0].commit_hash, allow_patterns=small, ignore_patterns=UNWANTED))
    needed = _shards(path, [file.name for file in weights])
    chosen = [file for file in files if file not in weights or file.name in needed]
    return RemoteModel(name, found[0].commit_hash, path, tuple(chosen))


def _shards(path: Path, weights: Sequence[str]) -> Collection[str]:
    """Which of the `weights` in a repository are the model's, by its small files in `path`."""
    index = path / SAFETENSORS_INDEX
    listed: set[str] = set()
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CheckpointError(f"{index} lists no weights: the model on the hub is not whole.") from None
    # an index that does not list this file was left by an earlier model, and transformers does not look at it either
    if SINGLE in weights and SINGLE not in listed:
        return [SINGLE]
    return listed or weights


@contextmanager
def _explained(model: str, name: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Errors of the hub's client become a CheckpointError about `name` at a `revision`, which a user called `model`."""
    from huggingface_hub import errors

    missing = f"No directory {model!r}"
    at = f" at {revision}" if revision else ""
    # Those of the client library that the hub's own is built on.
    broken: Any = (*errors.HfHubHTTPError.__bases__, OSError)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(f"{missing}: give a model directory or a Hugging Face id.")
    try:
        yield
    except errors.HFValidationError:
        raise CheckpointError(f"{missing}, and it is not a Hugging Face id (like 'owner/model').") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN to your token."
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision!r} on the hub: give a branch, a tag or a commit.") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{missing}, and no such model on the hub (for a private one set HF_TOKEN).") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "the hub may not be asked (offline)" if offline else "the hub cannot be reached"
        raise CheckpointError(f"{missing}; the model {name}{at} is not in the local cache, and {reason}.") from None
    except errors.DryRunError:
        why = "it cannot be reached, or HF_HUB_OFFLINE forbids it"
        raise CheckpointError(f"The hub cannot be asked for {name}{at}: {why}.") from None
    except broken as problem:
        reason = [*str(problem).splitlines(), type(problem).__name__][0].rstrip(".")
        raise CheckpointError(f"Downloading {name} failed: {reason}. Try again.") from None
