"""A command's start: what no run of a model uses of the libraries it imports is left out, and garbage is collected later.

transformers' model code marks functions for torch's compiler, and looks for tensors that are spread over machines. Importing both
takes longer than all the rest of transformers, and neither is used here. So the compiler's package is deferred: its modules can be
imported, marks for it do nothing, and whatever else it is asked for loads it after all. So is what torch itself imports for those
who compile or export a model, a fifth of all imports: the shapes of results without numbers, written in Python (`torch.export` and
`torch._meta_registrations` with all that they stand on), distributions and masked tensors. So is the list of all models, which is
made by reading a thousand files. This is for processes of our own: in a program of somebody else's all is as it always is."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .torch_import import REGISTERING, loading, name_files

LIBRARY = "transformers"
# Where model code begins: what importing any model imports.
FOUNDATION = "transformers.modeling_utils"
# What most models import beside it.
BESIDE = ("transformers.masking_utils", "transformers.modeling_layers")
# What a foundation may raise that misses what was left out; it is imported whole then.
MISSED = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError)


def unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """`function` as it is, in the place of a mark for a compiler that never sees it."""
    return unmarked if function is None else function


# Whether this process is a command's, and nobody else's program.
_owned: list[bool] = [False]


# What has so many bytes, the C library gets from the system alone and gives back once it is free. It begins so, and takes for small
# whatever is as large as what was freed, up to 32 MiB. Small memory leaves gaps: a process held up to 13 MiB more, never the same.
GIVEN_BACK = 128 << 10
# Of the C library: which setting that is, its largest value, and its name in the environment; and what is free at the end of its
# memory before it is given back, as it begins and where it keeps all.
MMAP_THRESHOLD, LARGEST_THRESHOLD = -3, 32 << 20
MMAP_VARIABLE = "MALLOC_MMAP_THRESHOLD_"
TRIM_THRESHOLD, USUALLY, NEVER = -1, 128 << 10, 1 << 30


def own() -> None:
    """Take this process for a command's own: `lean` has an effect from now on, and large memory goes back once it is free."""
    _owned[0] = True
    if setting := _setting():
        setting(MMAP_THRESHOLD, GIVEN_BACK)


def _setting() -> Callable[[int, int], int] | None:
    """What changes the C library's settings; None where it has none, or the user has chosen them."""
    if sys.platform != "linux" or MMAP_VARIABLE in os.environ:
        return None
    # The GNU C library has it, others have not.
    return getattr(ctypes.CDLL(None), "mallopt", None)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Within it, a command's process keeps what it frees for what it needs next: the system takes as long to hand out new memory
    as it takes to compute what goes there. Up to 750 MiB more are held meanwhile, and given back at the end."""
    setting = _setting() if owned() else None
    if setting is None:
        yield
        return
    setting(MMAP_THRESHOLD, LARGEST_THRESHOLD)
    setting(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        setting(MMAP_THRESHOLD, GIVEN_BACK)
        setting(TRIM_THRESHOLD, USUALLY)
        # Where there is mallopt, there is this.
        ctypes.CDLL(None).malloc_trim(0)


def owned() -> bool:
    """Whether this process is a command's own."""
    return _owned[0]


def later(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of `module`, which is loaded when it is first called."""

    def call(*arguments: Any, **named: Any) -> Any:
        load_all([module])
        return getattr(sys.modules[module], name)(*arguments, **named)

    return call


# The shapes of results without numbers, by torch operator. Whoever runs a model without numbers loads them first (`load_all`):
# nobody asks a module for them.
SHAPES = ("torch._meta_registrations", "torch.distributed._meta_registrations")
# What masks made by a function of positions need of the compiler; it brings what exports models. We make no such masks.
INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"
# By module: what it answers before it is loaded.
DEFERRED: Mapping[str, Mapping[str, Any]] = {
    **{name: {} for name in SHAPES},
    INDEXING: {"TransformGetItemToIndex": later(INDEXING, "TransformGetItemToIndex")},
    "torch._dynamo": {"disable": unmarked, "allow_in_graph": unmarked, "assume_constant_result": unmarked},
    # An annotation.
    "torch._higher_order_ops.invoke_subgraph": {"NestedCompileRegionOptions": object},
    "torch._higher_order_ops": {name: later("torch._higher_order_ops", name) for name in ("cond", "while_loop")},
    "torch.distributions": {},
    "torch.export": {},
    "torch.masked": {},
    "transformers.models": {},
}
# Those that trace models, for which SHAPES are loaded too.
TRACERS = ("torch._dynamo", "torch.export")
# What begins to compile or to export. (A module of theirs that model code imports for its marks begins nothing.)
BEGINNINGS = ("torch._dynamo.backends", "torch._inductor", "torch.export")


class Deferred(ModuleType):
    """A module that is loaded when it is asked for anything; the modules of a package can be imported before."""

    def __getattr__(self, name: str) -> Any:
        answers = DEFERRED[self.__name__]
        if name in answers:
            return answers[name]
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        within = self.__dict__.get("__path__")
        if within is not None and PathFinder.find_spec(f"{self.__name__}.{name}", within) is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        load(self)
        # A package may put another module in its own place.
        return getattr(sys.modules[self.__name__], name)


def load(module: Deferred) -> None:
    """Make of a deferred `module` the real one."""
    module.__class__ = ModuleType  # type: ignore[assignment]
    assert module.__spec__ is not None and module.__spec__.loader is not None
    if module.__name__ in TRACERS:
        load_all(SHAPES)
    module.__spec__.loader.exec_module(module)


def load_all(names: Iterable[str]) -> None:
    """Load those of the modules `names` that are deferred."""
    for module in [sys.modules.get(name) for name in names]:
        if isinstance(module, Deferred):
            load(module)


class _Deferral(Loader):
    """Makes a deferred module, and gives it the loader of the real one."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.real


class _Finder(MetaPathFinder):
    """Finds the modules of DEFERRED, and nothing else."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in DEFERRED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferral(spec.loader)
        return spec


class _Waker(MetaPathFinder):
    """Finds nothing; where the first of BEGINNINGS is imported, loads TRACERS first.

    Their modules import each other in circles, which can be entered by the packages alone."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if any(f"{fullname}.".startswith(f"{beginning}.") for beginning in BEGINNINGS):
            load_all(TRACERS)


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Inside, importing `module` fails as if it were not installed, unless it was imported before."""
    hides = module not in sys.modules
    if hides:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            del sys.modules[module]


@contextmanager
def _deferring() -> Iterator[None]:
    """Inside, the modules of DEFERRED are deferred."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path[sys.meta_path.index(finder)] = _Waker()


@contextmanager
def _on_one_machine() -> Iterator[None]:
    """Inside, torch says that it was built without what spreads tensors over machines, as it is on some systems."""
    import torch.distributed as distributed

    asked: Callable[[], bool] = distributed.is_available
    distributed.is_available = lambda: False
    try:
        yield
    finally:
        distributed.is_available = asked


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Inside, garbage is not looked for; what is there at the end stays, and is never looked at again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def lean() -> Iterator[None]:
    """Inside, in a process of our `own`, imports take the least time; what model code stands on is imported already.

    Where that cannot be imported without what is left out, it is imported whole when it is first used."""
    if not _owned[0]:
        yield
        return
    with _collecting_later():
        with loading(), hidden("coverage"):
            # What multiplies needs it; nothing in it needs torch.
            importlib.import_module("numba")
        import_foundation()
        yield


def import_foundation() -> bool:
    """Import FOUNDATION without what no run of a model uses. False: it is imported already, or cannot be without."""
    if FOUNDATION in sys.modules:
        return False
    with ExitStack() as stack:
        stack.enter_context(_deferring())
        name_files(REGISTERING)
        import torch

        stack.enter_context(_on_one_machine())
        # It spreads models over devices, which we do ourselves.
        stack.enter_context(hidden("accelerate"))
        if not torch.cuda.is_available():
            stack.enter_context(hidden("triton"))
        try:
            for name in (FOUNDATION, *BESIDE):
                importlib.import_module(name)
        except MISSED:
            pass
        else:
            return True
    _begin_again()
    return False


def _begin_again() -> None:
    """Load what was deferred, and forget all of transformers that was imported without it."""
    load_all(name for name in DEFERRED if not name.startswith(LIBRARY))
    for name in [name for name in sys.modules if name.partition(".")[0] == LIBRARY]:
        del sys.modules[name]
