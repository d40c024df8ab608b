"""How a kernel is compiled: on first use, without the GIL, its machine code kept on disk where a directory allows it.

The helpers are bit casts for use inside kernels: a float's bits as an integer and back, and the nearest bfloat16."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` as machine code. It runs beside other Python threads, so it may not call back into Python."""
    try:
        code: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # numba found no directory it may write to: compile anew in every process
        code = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(F, code)


def bits(tensor: Tensor) -> Any:
    """A numpy view of the tensor's bytes as unsigned integers of its element size; nothing is copied."""
    views = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    return tensor.detach().view(views[tensor.element_size()]).numpy()


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
