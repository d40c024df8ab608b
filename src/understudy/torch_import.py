"""What makes importing torch take less time, and leaves nothing out."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Where torch registers operators of its own. It asks `inspect` each time which module that is.
REGISTERING = ("torch.library", "torch._library.custom_ops", "torch._native.registry")


@contextmanager
def loading() -> Iterator[None]:
    """Inside, a thread loads torch's largest library, which takes as long as many modules and leaves Python's lock to others. At
    the end it is there, or torch will say itself what is wrong with it."""
    library = _library_of_torch()
    thread = threading.Thread(target=_load_library, args=(library,)) if library is not None else None
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        if thread is not None:
            thread.join()


def _library_of_torch() -> Path | None:
    """The library of a torch for processors alone, unless it is loaded already. (One for GPUs loads others before it.)"""
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    library = folder / "libtorch_cpu.so"
    return library if library.exists() and not (folder / "libtorch_cuda.so").exists() else None


def _load_library(library: Path) -> None:
    with suppress(OSError):
        ctypes.CDLL(str(library))


def name_files(modules: Iterable[str]) -> None:
    """Tell `inspect` the names of `modules` by their files. Where it does not know a file, it follows the paths of all modules,
    which takes longer than most imports."""
    names: dict[str, str] = getattr(inspect, "modulesbyfile", {})
    for module in modules:
        package, *within = module.split(".")
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            names[f"{Path(folder).joinpath(*within)}.py"] = module
