"""What models take on disk: checkpoints of the hub's cache and directories, and the Stores that were made of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import demo
from .errors import CheckpointError, StoreError, UnderstudyError
from .weights import index, integrity
from .weights.checkpoint import Checkpoint
from .weights.entries import INDEX
from .weights.holding import in_use, unused
from .weights.writing import lock_of, only_process

# What can be wrong with a Store, so that no run takes it: it is of no use any more.
UNFINISHED, DAMAGED, CHANGED = "unfinished", "damaged", "its checkpoint was changed"


@dataclass(frozen=True)
class KnownStore:
    """A Store in the cache."""

    path: Path
    # The checkpoint it was made of, as `KnownModel.name`; empty: it does not say.
    model: str
    # Bytes on disk.
    nbytes: int
    # How it was made, in words.
    recipe: str = ""
    # Why no run takes it; empty: it is well.
    trouble: str = ""
    used: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The Store as JSON."""
        stale = self.trouble or None
        return {"path": str(self.path), "bytes": self.nbytes, "recipe": self.recipe, "stale": stale, "in_use": self.used}


@dataclass(frozen=True)
class KnownModel:
    """A checkpoint on this machine, or what is left of one: its Stores."""

    # The hub's name, the directory, or `demo`.
    name: str
    # hub, directory, built-in or gone.
    kind: str
    # Where it is: the hub's folder of all its revisions, or the directory; None where it is gone.
    path: Path | None = None
    # Bytes on disk.
    nbytes: int = 0
    # The directories that runs read.
    checkpoints: tuple[Path, ...] = ()
    stores: list[KnownStore] = field(default_factory=list)

    @property
    def used(self) -> bool:
        """Does a running process use the checkpoint?"""
        return any(map(in_use, self.checkpoints))

    def to_dict(self) -> dict[str, Any]:
        """The model as JSON."""
        where = None if self.path is None else str(self.path)
        stores = [store.to_dict() for store in self.stores]
        return {"name": self.name, "kind": self.kind, "path": where, "bytes": self.nbytes, "in_use": self.used, "stores": stores}


def inventory(cache: Path) -> list[KnownModel]:
    """All models of the hub's cache, and all that Stores in `cache` are of, by name.

    Stores that do not say what they are of come last, under an empty name."""
    models = {model.name: model for model in _of_hub()}
    for path in sorted(cache.iterdir() if cache.is_dir() else ()):
        if not path.is_dir() or not ((path / INDEX).is_file() or path.name.endswith(index.PARTIAL)):
            continue
        store = _store(path, models)
        _known(models, store.model).stores.append(store)
    return sorted(models.values(), key=lambda model: (not model.name, model.name))


def _of_hub() -> list[KnownModel]:
    """The models of the hub's cache that were downloaded, even if only in part."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    found = []
    for path in sorted(folder.glob("models--*")):
        name = path.name.removeprefix("models--").replace("--", "/", 1)
        snapshots = tuple(sorted(file.parent for file in path.glob("snapshots/*/config.json")))
        found.append(KnownModel(name, "hub", path, disk_bytes(path), snapshots))
    return found


def _known(models: dict[str, KnownModel], name: str) -> KnownModel:
    """The model of that name. One that `models` does not have is looked for on disk, once."""
    if name not in models:
        models[name] = _elsewhere(name)
    return models[name]


def _elsewhere(name: str) -> KnownModel:
    """The model that Stores are of which is not the hub's."""
    if name == demo.NAME:
        return KnownModel(name, "built-in", demo.path(), disk_bytes(demo.path()), (demo.path(),))
    path = Path(name)
    if name and path.is_absolute() and (path / "config.json").is_file():
        return KnownModel(name, "directory", path, disk_bytes(path), (path,))
    return KnownModel(name, "gone")


def _store(path: Path, models: dict[str, KnownModel]) -> KnownStore:
    """The Store in `path`, looked at without reading its weights."""
    nbytes, used = disk_bytes(path), in_use(path)
    if path.name.endswith(index.PARTIAL):
        return KnownStore(path, "", nbytes, trouble=UNFINISHED)
    try:
        contents = index.load(path)
    except StoreError:
        return KnownStore(path, "", nbytes, trouble=DAMAGED, used=used)
    recipe, source = contents.recipe, contents.source
    name = demo.NAME if source.name == str(demo.path()) else source.name.partition("@")[0]
    words = f"{recipe.copy}, {recipe.codec}"
    trouble = ""
    try:
        integrity.check(path, contents)
    except StoreError:
        trouble = CHANGED if source.linked else DAMAGED
    checkpoints = _known(models, name).checkpoints
    if not trouble and checkpoints and not any(_same(place, source.fingerprint) for place in checkpoints):
        trouble = CHANGED
    return KnownStore(path, name, nbytes, words, trouble, used)


def _same(checkpoint: Path, fingerprint: str) -> bool:
    """Is this the checkpoint that a Store was made of?"""
    try:
        return Checkpoint.open(checkpoint).fingerprint == fingerprint
    except CheckpointError:
        return False


def disk_bytes(path: Path) -> int:
    """Bytes of all files below `path`; links are not followed."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


@dataclass(frozen=True)
class Removal:
    """What is to be deleted: downloads of the hub, and Stores."""

    models: Sequence[KnownModel]
    stores: Sequence[KnownStore]

    @property
    def nbytes(self) -> int:
        """Bytes that it frees."""
        return sum(model.nbytes for model in self.models) + sum(store.nbytes for store in self.stores)

    def run(self) -> None:
        """Delete all of it, or nothing where a part is in use. Raises UnderstudyError."""
        with ExitStack() as held:
            held.enter_context(unused(path for model in self.models for path in model.checkpoints))
            held.enter_context(unused(store.path for store in self.stores))
            for store in self.stores:
                if store.path.name.endswith(index.PARTIAL):
                    lock = lock_of(store.path.with_name(store.path.name.removesuffix(index.PARTIAL)))
                    held.enter_context(only_process(lock, partial(_refuse, store.path)))
            _delete([*(store.path for store in self.stores), *(model.path for model in self.models if model.path is not None)])


def _refuse(path: Path) -> None:
    raise UnderstudyError(f"{path} is being made by a running process: end that first.")


def _delete(paths: Iterable[Path]) -> None:
    """Delete directories. Raises UnderstudyError for the first that cannot be."""
    for path in paths:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise UnderstudyError(f"{path} cannot be deleted: {os.strerror(error.errno or 0)}.") from None
