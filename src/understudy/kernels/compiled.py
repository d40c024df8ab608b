"""How a kernel is compiled: on first use, without the GIL, unless its machine code is on disk already (`code_cache`).

Machine code has the code of the kernels that it calls in it, and the constants of other files. numba looks at a kernel's own
file alone before it takes what is on disk. So a kernel's name carries a stamp over all files of this folder: numba calls its
files by that name, and what older sources gave is never found again. It lies in `__pycache__` until that is emptied.

Where the machine code of two kernels has functions of one name in it, a process that loads both calls the first's from both: numba
numbers functions, but each process that compiles counts for itself. So functions made by one factory have names of their own
(`part`).

The helpers are bit casts for use inside kernels: a float's bits as an integer and back, and the nearest bfloat16."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from torch import Tensor

from . import instructions
from .code_cache import CodeCache

instructions.hold()

# The first of what a kernel counts. It is no literal, for which numba would compile what it is given to once more.
FIRST: Any = np.int64(0)
F = TypeVar("F", bound=Callable[..., Any])
# numba's types know not all of its options
njit: Any = numba.njit


def compiled(function: F) -> F:
    """`function` as machine code. It runs beside other Python threads, so it may not call back into Python.

    Its sums and products are rounded as they are written."""
    return _kept(function, nogil=True, error_model="numpy")


def contracted(function: F) -> F:
    """`compiled`, where a product and the sum it goes into may be rounded once, together."""
    return _kept(function, nogil=True, fastmath={"contract"})


def _kept(function: F, *, fastmath: bool | set[str] = False, **options: Any) -> F:
    """`function` through numba with these options, its machine code kept on disk.

    Where numba is told nothing of `fastmath`, it compiles a kernel as the first that calls it is, and keeps that for all."""
    # What C would call it by is not compiled: that is for `machine_code`.
    dispatcher: Any = njit(fastmath=fastmath, no_cfunc_wrapper=True, **options)(_stamped(function))
    dispatcher._cache = CodeCache(function)
    return cast(F, dispatcher)


def part(function: F, *made_of: object) -> F:
    """`function`, which a factory made of `made_of`, for kernels to call: these say in its name which of them it is.

    Raises AssertionError where a second one has the same name."""
    function.__qualname__ += str(made_of)
    name = f"{function.__module__}.{function.__qualname__}"
    assert name not in _parts, f"two functions for kernels are called {name}"
    _parts.add(name)
    # Nobody but kernels calls it: what Python and C would call it by is not compiled.
    alone = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, njit(nogil=True, error_model="numpy", fastmath=False, **alone)(_stamped(function)))


# Names of all functions that `part` was given.
_parts: set[str] = set()


def machine_code(function: Callable[[Any], None]) -> int:
    """The address of machine code for `function`, which takes the address of a run's descriptor and can be called from C. It is
    kept on disk."""
    code: Any = CFunc(_stamped(function), ((types.int64,), types.void), locals={}, options={})
    code._cache = CodeCache(function)
    code.compile()
    return int(code.address)


def on_disk(kernel: Any) -> bool | None:
    """Whether machine code of a `compiled` kernel is there for this processor, of whatever types it is given; None: there is no
    place to keep it."""
    cache: CodeCache = kernel._cache
    return cache.kept()


def _stamped(function: F) -> F:
    """`function`, its name with a stamp, so that the machine code of no other sources is found."""
    mark = "-" + stamp(Path(__file__).parent)
    function.__qualname__ = function.__qualname__.removesuffix(mark) + mark
    return function


@functools.cache
def stamp(folder: Path) -> str:
    """Ten hex digits that change with the name or the content of any Python file in `folder`, as they are when first asked."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:10]


def bits(tensor: Tensor) -> Any:
    """A numpy view of the tensor's bytes as unsigned integers of its element size; nothing is copied."""
    views = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    return tensor.detach().view(views[tensor.element_size()]).numpy()


def bits_of(number: float) -> int:
    """The bits of `number` as float32, which a kernel's `float_of` turns back."""
    return int(np.float32(number).view(np.uint32))


@intrinsic
def _float_of(typing: Any, word: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def _word_of(typing: Any, number: Any) -> Any:
    """The 32 bits of a float32, as a non-negative int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), generate


float_of: Any = _float_of
word_of: Any = _word_of
