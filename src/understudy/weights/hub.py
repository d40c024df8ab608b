"""Models of the Hugging Face hub, as directories of its cache."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError

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
    from huggingface_hub import errors, snapshot_download

    missing = f"No directory {model!r}"
    name, revision = name_and_revision(model, revision)
    at = f" at {revision}" if revision else ""
    # Those of the client library that the hub's own is built on.
    broken: Any = (*errors.HfHubHTTPError.__bases__, OSError)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(f"{missing}: give a model directory or a Hugging Face id.")
    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(wanted), ignore_patterns=UNWANTED, local_files_only=offline
        )
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
    except broken as problem:
        reason = [*str(problem).splitlines(), type(problem).__name__][0]
        raise CheckpointError(f"Downloading {name} failed: {reason}. Try again.") from None
    return Path(found)
