"""Runs a kernel on the threads that torch's own operations run on: a second pool would fight them for the cores.

Torch's CPU build brings an OpenMP library; its entry `GOMP_parallel` calls one function on every thread of the team.
The kernel's threads share out the work by a counter: `take` hands each next piece to whoever asks first."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

from .compiled import compiled

types: Any = numba.types
# omp_pause_soft of OpenMP 5.0: what the program set stays.
SOFT_PAUSE = 1


@cache
def parallel() -> int:
    """The address of GOMP_parallel in the OpenMP library of this process; 0 if there is no such library."""
    return _entry("GOMP_parallel")


@cache
def _entry(name: str) -> int:
    """The address of a function of this process's OpenMP library, torch's own before any other; 0 if none has it."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {line.split(maxsplit=5)[-1] for line in lines if ".so" in line and "omp" in line.rpartition("/")[2]}
    for file in sorted(files, key=lambda name: ("torch" not in name, name)):
        function = getattr(ctypes.CDLL(file), name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def disband() -> bool:
    """End the threads that wait for the calling thread's next work: its next call starts new ones, which takes some 50 us.

    OpenMP keeps a team for each thread that ever asked for one. When all teams together have more threads than there are
    processors, its library lets waiting threads sleep at once, and every kernel of the thread that now works pays for waking them.
    Returns False where the library cannot do it (before OpenMP 5.0)."""
    pause = _entry("omp_pause_resource_all")
    return bool(pause) and ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(pause)(SOFT_PAUSE) == 0


class _Shared(threading.local):
    """What `shared_by` said last in each thread."""

    # None: nothing was said.
    kernels: int | None = None


_shared = _Shared()


def threads() -> int:
    """How many threads share a kernel that the calling thread runs: as many as torch has, or as `shared_by` says."""
    return _shared.kernels or torch.get_num_threads()


@contextmanager
def shared_by(kernels: int, stock: int) -> Iterator[None]:
    """Within it, `kernels` threads share a kernel that the calling thread runs, and `stock` threads an operation of torch's own.

    Other threads of the process keep theirs."""
    before, torchs = _shared.kernels, torch.get_num_threads()
    _shared.kernels = kernels
    try:
        if stock != torchs:
            _give_torch(stock)
        yield
    finally:
        _shared.kernels = before
        if stock != torchs:
            _give_torch(torchs)


@contextmanager
def stock_alone() -> Iterator[None]:
    """Within it, an operation of torch's own runs on the calling thread alone, unless `shared_by` says otherwise: it is done before
    another thread of a busy machine has its turn. Kernels keep their threads."""
    with shared_by(threads(), 1):
        yield


def _give_torch(count: int) -> None:
    """Let torch's own operations run on so many threads, where the calling thread asks for them."""
    # torch's own function says it to every thread of the process, and to each library that it multiplies with
    address = _entry("omp_set_num_threads")
    if address:
        _setter(address)(count)
    else:
        torch.set_num_threads(count)


@cache
def _setter(address: int) -> Callable[[int], None]:
    """omp_set_num_threads, to be called."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)


def note() -> str:
    """What a user should know about speed on this machine; empty when there is nothing to say."""
    return "" if parallel() else "torch's threads were not found: drafting runs on one thread, which is slower."


def run(address: int, descriptor: ctypes.Structure, small: bool = False) -> None:
    """Call the machine code at `address` with `descriptor` on all `threads`; on this one alone if `small`."""
    count = 1 if small else threads()
    if count == 1 or not parallel():
        _alone(address)(ctypes.addressof(descriptor))
    else:
        _team(parallel())(address, ctypes.addressof(descriptor), count, 0)


@cache
def _alone(address: int) -> Callable[[int], None]:
    """The machine code at `address`, to be called."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _team(address: int) -> Callable[[int, int, int, int], None]:
    """GOMP_parallel, to be called."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(address)


@intrinsic
def _take(typing: Any, address: Any) -> Any:
    """Add 1 to the int64 at `address` and return what it was, as one step among all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _call(typing: Any, entry: Any, argument: Any) -> Any:
    """Call the machine code at `entry` with `argument` from within a kernel."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)]).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _together(typing: Any, entry: Any, work: Any, argument: Any, threads: Any) -> Any:
    """Call entry(work, argument, threads, 0) from within a kernel; `entry` is the address of GOMP_parallel."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, byte, word, word]).as_pointer()
        function, run, descriptor, count = arguments
        builder.call(
            builder.inttoptr(function, kind),
            [builder.inttoptr(run, byte), builder.inttoptr(descriptor, byte), builder.trunc(count, word), word(0)],
        )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _at(kind: Any) -> Any:
    """For kernels: a function from an address to a pointer to `kind`."""
    pointer = types.CPointer(kind)

    @intrinsic
    def cast(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return cast


take: Any = _take
call: Any = _call
together: Any = _together


@compiled
def share(run: Any, work: int, argument: int) -> None:
    """Have as many threads as `run` says do `work` with `argument`: this one alone, where there is no GOMP_parallel."""
    if run.parallel == 0 or run.threads == 1:
        call(work, argument)
    else:
        together(run.parallel, work, argument, run.threads)
int8_at, uint8_at, uint16_at = map(_at, (types.int8, types.uint8, types.uint16))
uint32_at, float32_at = map(_at, (types.uint32, types.float32))
int64_at: Any = _at(types.int64)
