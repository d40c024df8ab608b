"""transformers' list of all that its models offer, kept from one start of a command to the next.

transformers makes the list whenever it is imported, by reading 1,800 files, a tenth of the time to the first token. Here it is kept
in the cache directory, and taken from there while every folder and file that it was made of is as it was. A version that makes its
lists by another function makes them itself, and so does one whose lists have another form."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .plan.remembered import write_json

# Where transformers has the function that makes a list of a folder.
MODULE = "transformers.utils.import_utils"
FUNCTION = "define_import_structure"
# What is offered: for each set of what must be installed for it, the names of each module.
Lists = dict[frozenset[str], dict[str, set[str]]]


@contextmanager
def kept_lists(directory: Path) -> Iterator[None]:
    """Inside, where transformers is imported, its lists come from `directory` if they are there, and are kept there if not."""
    finder = _ListFinder(directory)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module, function in finder.changed:
            setattr(module, FUNCTION, function)


class _ListFinder(MetaPathFinder):
    """Finds MODULE, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Each module whose FUNCTION is another one for now, and its own.
        self.changed: list[tuple[ModuleType, Any]] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Changing(spec.loader, self)
        return spec


class _Changing(Loader):
    """Loads MODULE, and puts `kept` in the place of its FUNCTION."""

    def __init__(self, real: Loader, finder: _ListFinder) -> None:
        self.real, self.finder = real, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.real
        self.real.exec_module(module)
        if (function := getattr(module, FUNCTION, None)) is not None:
            self.finder.changed.append((module, function))
            setattr(module, FUNCTION, kept(function, self.finder.directory))


def kept(function: Callable[..., Any], directory: Path) -> Callable[..., Any]:
    """`function`, whose first argument is a folder, where what it makes of that is kept in `directory`."""

    def lists(folder: Any, *arguments: Any, **named: Any) -> Any:
        said = repr((os.fspath(folder), arguments, sorted(named.items())))
        file = directory / "lists" / f"{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"
        if (found := _recalled(file, os.fspath(folder))) is not None:
            return found
        made = function(folder, *arguments, **named)
        _keep(file, os.fspath(folder), made)
        return made

    return lists


def _recalled(file: Path, folder: str) -> Lists | None:
    """The lists in `file`, unless what they were made of has changed since."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        said = json.loads(file.read_text())
        if _state(folder, said["files"]) == said["state"]:
            return _lists(said["lists"])
    return None


def _keep(file: Path, folder: str, made: Any) -> None:
    """Write what was made of `folder` to `file`, unless it has another form."""
    with suppress(OSError, AttributeError, TypeError):
        plain = [[sorted(needed), {module: sorted(names) for module, names in modules.items()}] for needed, modules in made.items()]
        if _lists(plain) == made:
            files = _files(folder)
            write_json(file, {"files": files, "state": _state(folder, files), "lists": plain})


def _lists(plain: Any) -> Lists:
    """Lists of the form that JSON has as transformers has them."""
    return {frozenset(needed): {module: set(names) for module, names in modules.items()} for needed, modules in plain}


def _files(folder: str) -> list[str]:
    """What lists of `folder` depend on: itself, all folders in it and all Python files, as paths from it."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inside = Path(place).relative_to(folder)
        found += [str(inside), *(str(inside / name) for name in files if name.endswith(".py"))]
    return found


def _state(folder: str, files: Sequence[str]) -> str:
    """A digest of when each of `files` was last changed, and how large it is. Raises OSError where one is missing."""
    digest = hashlib.sha256()
    place = os.open(folder, os.O_RDONLY)
    try:
        for file in files:
            found = os.stat(file, dir_fd=place)
            digest.update(b"%d %d " % (found.st_mtime_ns, found.st_size))
    finally:
        os.close(place)
    return digest.hexdigest()
