"""Models of the Hugging Face hub, as directories of its cache."""

from pathlib import Path
from typing import Any

from ..errors import CheckpointError

WANTED = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
# Other formats and copies live in folders.
UNWANTED = ["*/*"]


def download(name: str, offline: bool) -> Path:
    """The directory of the model `name`; downloads what the cache lacks unless `offline`."""
    from huggingface_hub import errors, snapshot_download

    missing = f"No directory {name!r}"
    # Those of the client library that the hub's own is built on.
    broken: Any = (*errors.HfHubHTTPError.__bases__, OSError)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(f"{missing}: give a model directory or a Hugging Face id.")
    try:
        found = snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=offline)
    except errors.HFValidationError:
        raise CheckpointError(f"{missing}, and it is not a Hugging Face id (like 'owner/model').") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN to your token."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{missing}, and no such model on the hub (for a private one set HF_TOKEN).") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "the hub may not be asked (offline)" if offline else "the hub cannot be reached"
        raise CheckpointError(f"{missing}; the model {name} is not in the local cache, and {reason}.") from None
    except broken as problem:
        reason = [*str(problem).splitlines(), type(problem).__name__][0]
        raise CheckpointError(f"Downloading {name} failed: {reason}. Try again.") from None
    return Path(found)
