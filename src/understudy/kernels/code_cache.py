"""Where a kernel's machine code comes from before it is compiled: what an earlier process kept, or what came with the package.

numba keeps machine code by the function's signature, the processor it was made for and the function's own code; a list says which
file has which. Processes write side by side: each file is whole, and has what the list says. What comes with
the package lies in `ready/NAME`, a folder for each of the sets of `instructions`; it was made by `kernels.ready`. Neither is
needed: a file that is missing, damaged or of another version is as good as none, and a place that cannot be written to means that
the kernel is compiled in each process."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import caching
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

from . import instructions

# numba's classes have no types
_FunctionCache: Any = caching.FunctionCache
_ResultPlaces: Any = caching.CompileResultCacheImpl
_NumberedFiles: Any = caching.IndexDataCacheFile

# What comes with the package.
READY = Path(__file__).parent / "ready"
# What reading a file that is no longer whole may raise.
DAMAGED = (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError)


class _Nowhere:
    """The place of machine code where numba finds none: nothing is there, and nothing can be written."""

    def __init__(self, function: Any, file: str) -> None:
        self.line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Any, file: str) -> _Nowhere:
        return cls(function, file)

    def ensure_cache_path(self) -> None:
        raise OSError("there is no place for machine code")

    def get_cache_path(self) -> str:
        return str(READY / "nowhere")

    def get_source_stamp(self) -> str:
        return ""

    def get_disambiguator(self) -> str:
        return str(self.line)


class _Places(_ResultPlaces):  # type: ignore[misc]
    """numba's own places, and none at the end, in the place of an error."""

    _locator_classes = (*_ResultPlaces._locator_classes, _Nowhere)


class _CacheFiles(_NumberedFiles):  # type: ignore[misc]
    """The list of a kernel's machine code on disk, and its files, which bear a digest of what they are of.

    numba gives them numbers. Two processes that compile a kernel for two signatures at once then take one number for both, and a
    third may run what one left for what the other says it is."""

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        name = f"{Path(self._index_path).stem}.{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.nbc"
        self._save_data(name, data)
        # Not read before: what others list meanwhile stays.
        self._save_index(self._load_index() | {key: name})


class CodeCache(_FunctionCache):  # type: ignore[misc]
    """The machine code of one kernel on disk, for numba."""

    _impl_class = _Places

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _CacheFiles(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, signature: Any, target: Any) -> Any:
        """What is kept for `signature`, linked with numba's runtime. What only compiling needs, numba loads once it compiles: here
        it would take a tenth of a second of each process (`BaseContext.refresh`)."""
        rtsys.initialize(target)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(signature, target)

    def _load_overload(self, signature: Any, target: Any) -> Any:
        """What is kept for `signature`: by an earlier process, else with the package; None where there is nothing."""
        if not self._enabled:
            return None
        key = self._index_key(signature, target.codegen())
        with suppress(*DAMAGED):
            if (data := self._cache_file.load(key)) is not None:
                return self._impl.rebuild(target, data)
        with suppress(*DAMAGED):
            return self._ready(key, target)
        return None

    def kept(self) -> bool | None:
        """Whether an earlier process kept any machine code of this kernel for this processor, or it came with the package; None:
        nothing can be kept."""
        if ready_here() is not None:
            return True
        if isinstance(self._impl.locator, _Nowhere):
            return None
        processor = cpu_target.target_context.codegen().magic_tuple()
        with suppress(*DAMAGED):
            return any(of == processor for _, of, _ in self._cache_file._load_index())
        return False

    def _ready(self, key: tuple[Any, ...], target: Any) -> Any:
        """What came with the package for this processor; None where nothing did."""
        chosen = ready_here()
        if chosen is None:
            return None
        signature, (triple, _, _), code = key
        file = self.ready_file(chosen.name)
        data = file.load((signature, (triple, chosen.cpu, chosen.llvm_features), code))
        return None if data is None else self._impl.rebuild(target, data)

    def ready_file(self, name: str) -> Any:
        """The file of this kernel's machine code for the set of instructions `name`, of what comes with the package."""
        return _CacheFiles(str(READY / name), self._impl.filename_base, _digest(self._py_func.__code__.co_filename))

    def _save_overload(self, signature: Any, data: Any) -> None:
        """Keep what was compiled, where there is a place and room for it."""
        with suppress(OSError):
            try:
                super()._save_overload(signature, data)
            except DAMAGED:
                # the list of what is kept cannot be read: begin a new one
                self._cache_file.flush()
                super()._save_overload(signature, data)


def ready_here() -> instructions.InstructionSet | None:
    """The set of instructions in use, if machine code for it came with the package."""
    chosen = instructions.asked() or instructions.best()
    return chosen if chosen is not None and (READY / chosen.name).is_dir() else None


@cache
def _digest(file: str) -> bytes:
    """What numba marks machine code of the source `file` with."""
    return hashlib.sha256(Path(file).read_bytes()).digest()
