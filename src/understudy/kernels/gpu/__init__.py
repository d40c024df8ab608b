"""The kernels for a GPU, in Triton. Only they import it: everything else runs where it is not installed."""

from typing import Any

import triton

# whether kernels run in Triton's interpreter on the CPU, whose dot takes a bfloat16 for an integer
INTERPRETED = bool(triton.knobs.runtime.interpret)


def helper(function: Any) -> Any:
    """A function that kernels call, compiled into them. In the interpreter a plain one, which spares what it does at each call."""
    return function if INTERPRETED else triton.jit(function)
