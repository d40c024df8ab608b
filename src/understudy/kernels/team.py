"""The threads that torch's own operations run on. A second pool would fight them for the cores.

Torch's CPU build brings an OpenMP library; its entry `GOMP_parallel` calls one function on every thread of the team."""

import ctypes
from functools import cache
from pathlib import Path


@cache
def parallel() -> int:
    """The address of GOMP_parallel in the OpenMP library of this process; 0 if there is none to be found."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {line.split(maxsplit=5)[-1] for line in lines if ".so" in line and "omp" in line.rpartition("/")[2]}
    for file in sorted(files, key=lambda name: ("torch" not in name, name)):
        function = getattr(ctypes.CDLL(file), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def note() -> str:
    """What a user should know about speed on this machine; empty when there is nothing to say."""
    return "" if parallel() else "torch's threads were not found: drafting runs on one thread, which is slower."
