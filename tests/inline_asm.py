"""Instructions for whole words, which Triton's interpreter does not know, followed one by one on arrays of words."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

U32 = np.uint32


def picked(first: Any, second: Any, selectors: Any) -> Any:
    """prmt: four of the eight bytes of two words."""
    sources = np.stack([word >> U32(8 * i) & U32(255) for word in np.broadcast_arrays(first, second) for i in range(4)])
    places = [np.broadcast_to((selectors >> U32(4 * i)) & U32(7), sources.shape[1:])[None] for i in range(4)]
    return sum(np.take_along_axis(sources, place.astype(np.int64), 0)[0] << U32(8 * i) for i, place in enumerate(places))


def halves(words: Any) -> Any:
    """The two bfloat16s of each word, as float64: their products and sums are exact there."""
    both = np.stack(np.broadcast_arrays(words << U32(16), words & U32(0xFFFF0000)), -1)
    return np.ascontiguousarray(both).view(np.float32).astype(np.float64)


def joined(numbers: Any) -> Any:
    """Two numbers each, rounded to bfloat16s of one word, ties to even. They must lie far from the ends of what that holds."""
    bits = numbers.astype(np.float32).view(U32)
    bits = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return bits[..., 0] | bits[..., 1] << U32(16)


def value_of(name: str, found: dict[str, Any]) -> Any:
    return found[name] if name in found else U32(int(name, 0))


def followed(asm: str, given: dict[str, Any]) -> dict[str, Any]:
    """The registers after `asm`, which begins with those `given`."""
    found = dict(given)
    for operation, words in re.findall(r"^([a-z0-9.]+) ([^;]*);", asm, re.M):
        if operation == ".reg":
            continue
        into, *names = [word.strip() for word in words.split(",")]
        kind = operation.split(".")[0]
        first, *rest = [value_of(name, found) for name in names]
        if kind == "prmt":
            found[into] = picked(first, *rest)
        elif kind == "shr":
            found[into] = first >> rest[0]
        elif kind == "mov":
            found[into] = first
        elif operation == "fma.rn.bf16x2":
            found[into] = joined(halves(first) * halves(rest[0]) + halves(rest[1]))
        else:
            assert operation == "lop3.b32" and int(rest[2]) == 0xEA, operation
            found[into] = (first & rest[0]) | rest[1]
    return found


def inline_asm(self: Any, asm: str, constraints: str, values: Any, types: Any, pure: bool, pack: int) -> Any:
    """In the place of the interpreter's own: of two neighbours each, words in, two bfloat16s out."""
    from triton.runtime import interpreter

    outputs = constraints.count("=")
    assert pack == 2 and pure and constraints.count("r") - outputs == 2 * len(values), (constraints, len(values))
    shape, registers = values[0].data.shape, {}
    for value in values:
        pairs = np.ascontiguousarray(np.broadcast_to(value.data, shape)).view(U32).reshape(-1, 2)
        registers |= {f"${outputs + len(registers) + i}": pairs[:, i] for i in range(2)}
    found = followed(asm, registers)
    made = []
    for i in range(outputs):
        both = np.stack([found[f"${i}"] & U32(0xFFFF), found[f"${i}"] >> U32(16)], 1).astype(np.uint16)
        made.append(interpreter.TensorHandle(both.reshape(shape), interpreter.tl.bfloat16))
    return SimpleNamespace(get_result=made.__getitem__)


def dot(self: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
    """The interpreter's own takes bfloat16s for integers."""
    from triton.runtime import interpreter

    wide = [(side.data.astype(U32) << U32(16)).view(np.float32) for side in (a, b)]
    return interpreter.TensorHandle(np.matmul(*wide) + d.data, d.dtype.scalar)


def follow(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let the interpreter follow them from now on, and multiply bfloat16s; `put` is as `setattr`."""
    from triton.runtime import interpreter

    put(interpreter.InterpreterBuilder, "create_inline_asm", inline_asm)
    put(interpreter.InterpreterBuilder, "create_dot", dot)
