"""Triton's interpreter, made quicker: it makes types and shapes anew for each operation of each program, does each sum of integers
twice more, and for each call of a function puts its own functions in the place of Triton's. All of it takes longer than what is
computed, which stays Triton's own.
Products of matrices alone are made otherwise: a row's bits depend on no other row, as on a GPU."""

import inspect
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import numpy as np

# Modules whose functions are the interpreter's now.
PATCHED: set[str] = set()


def quicken() -> None:
    """From now on types and shapes are made once, and a module is patched once for each kernel that runs. Nothing, where Triton is
    not installed."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    if interpreter._patch_lang.__name__ == "patched":
        return
    _patch_modules_once(interpreter)
    _make_types_once(interpreter)
    _check_less()
    _multiply_rows_alone(interpreter)


def _multiply_rows_alone(interpreter: Any) -> None:
    """Multiply each row by itself: on some processors numpy gives a row of a product other bits at another place."""

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        assert not any(x.dtype.is_floating() and x.dtype.primitive_bitwidth == 8 for x in (a, b)), "floats of 8 bits"
        product = np.matmul(a.data[..., None, :], b.data[..., None, :, :], dtype=d.data.dtype)[..., 0, :]
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _patch_modules_once(interpreter: Any) -> None:
    import triton.language as tl

    patch = interpreter._patch_lang

    @cache
    def named(function: Any) -> set[str]:
        return {value.__name__ for value in function.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}

    def patched(function: Any) -> Any:
        modules = named(function)
        if modules <= PATCHED:
            return interpreter._LangPatchScope()
        scope, fresh = patch(function), modules - PATCHED
        PATCHED.update(fresh)
        restore = scope.restore

        def restored() -> None:
            restore()
            PATCHED.difference_update(fresh)

        scope.restore = restored
        return scope

    interpreter._patch_lang = patched


def _make_types_once(interpreter: Any) -> None:
    from triton.language import core

    # What numpy calls a type does not depend on the shape of a block.
    made: dict[str, Any] = {}
    original = interpreter._get_np_dtype

    def of_numpy(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in made:
            made[name] = original(kind)
        return made[name]

    interpreter._get_np_dtype = of_numpy
    equal = core.dtype.__eq__
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)

    def extent(one: Any) -> Any:
        return one.value if isinstance(one, core.constexpr) else one

    def of_block(element: Any, shape: Any) -> Hashable:
        return element.name, getattr(element, "address_space", None), tuple(map(extent, shape))

    def of_tensor(handle: Any, kind: Any) -> Hashable:
        return tuple(map(extent, kind.shape)) if kind.is_block() else ()

    _remember(core.block_type, ("element_ty", "shape"), of_block, own=())
    _remember(core.tensor, ("handle", "type"), of_tensor, own=("handle", "type", "dtype"))


def _check_less() -> None:
    """Leave out what changes nothing: sums that are compared with an int32's range where nobody is told of it, and two operands of
    one type and shape made alike. A number beside a block becomes a block once for each type and shape."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    overflow, alike = TritonSemantic.binary_op_sanitize_overflow_impl, TritonSemantic.binary_op_type_checking_impl
    blocks: dict[Hashable, Any] = {}

    def sanitize(self: Any, *given: Any) -> None:
        if self.builder.options.debug:
            overflow(self, *given)

    def of_number(self: Any, number: Any, beside: Any, *options: bool) -> Any:
        """A block like `beside`, of the number alone; None where both become something else."""
        # as words, since -0.0 is equal to 0.0
        key = repr(number), beside.dtype.name, tuple(beside.shape), options
        if key not in blocks:
            other, block = alike(self, beside, number, *options)
            blocks[key] = block if other is beside else None
            if other is beside:
                block.handle.data.flags.writeable = False
        return blocks[key]

    def checked(
        self: Any, one: Any, other: Any, left: bool = False, right: bool = False, arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:  # fmt: skip
        first, second = isinstance(one, core.tensor), isinstance(other, core.tensor)
        options = left, right, arithmetic_check, div_or_mod
        if first and second and not div_or_mod and one.type == other.type and not one.dtype.is_ptr():
            return one, other
        if first and isinstance(other, int | float) and not one.dtype.is_ptr():
            block = of_number(self, other, one, *options)
            return (one, block) if block is not None else alike(self, one, other, *options)
        return alike(self, one, other, *options)

    TritonSemantic.binary_op_sanitize_overflow_impl = sanitize
    TritonSemantic.binary_op_type_checking_impl = checked


def _remember(kind: Any, names: tuple[str, str], key_of: Callable[..., Hashable], own: tuple[str, ...]) -> None:
    """Objects of the class `kind`, made of two arguments called `names`, get the attributes of the first one that was made with the
    same key; those in `own` are each object's own: the arguments, and `dtype`, the scalar type of the second."""
    make = kind.__init__
    known: dict[Hashable, dict[str, Any]] = {}

    def init(self: Any, *given: Any, **more: Any) -> None:
        first, second = (*given, *(more[name] for name in names[len(given) :]))
        key = key_of(first, second)
        if key not in known:
            # Raises where the arguments are none.
            make(self, first, second)
            known[key] = {name: value for name, value in vars(self).items() if name not in own}
            return
        found = vars(self)
        found.update(known[key])
        if own:
            found.update(handle=first, type=second, dtype=second.scalar)

    kind.__init__ = init
