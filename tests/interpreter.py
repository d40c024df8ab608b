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
    _compute_at_once(interpreter)


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

    broadcast, cast = TritonSemantic.broadcast_impl_value, TritonSemantic.cast

    def broadcasted(self: Any, one: Any, other: Any) -> Any:
        if one.handle.data.shape == other.handle.data.shape and one.type.is_block() == other.type.is_block():
            return one, other
        return broadcast(self, one, other)

    def casted(self: Any, value: Any, kind: Any, *options: Any) -> Any:
        return value if value.dtype is kind else cast(self, value, kind, *options)

    TritonSemantic.broadcast_impl_value, TritonSemantic.cast = broadcasted, casted
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


# What numpy computes for operations of two operands of one type; Triton's own functions for the first look for sums that overflow.
ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
OPERATIONS = {
    **ARITHMETIC, "and_": np.bitwise_and, "or_": np.bitwise_or, "xor_": np.bitwise_xor,
    "less_than": np.less, "less_equal": np.less_equal, "greater_than": np.greater, "greater_equal": np.greater_equal,
    "equal": np.equal, "not_equal": np.not_equal,
}  # fmt: skip
# By these names tensors have them.
SIGNS = {
    "__add__": "add", "__sub__": "sub", "__mul__": "mul", "__and__": "and_", "__or__": "or_", "__xor__": "xor_",
    "__lt__": "less_than", "__le__": "less_equal", "__gt__": "greater_than", "__ge__": "greater_equal",
    "__eq__": "equal", "__ne__": "not_equal",
}  # fmt: skip
# Types whose numbers numpy computes with as they are.
KNOWN = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "fp32", "fp64"}


def _compute_at_once(interpreter: Any) -> None:
    """Let numpy compute operations of two operands at once, and broadcast them: the first time for each pair of types and shapes
    Triton's own way computes them too, and only where both make the same bits the others are made so."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    tensor, handle_of = core.tensor, interpreter.TensorHandle

    def made(ways: dict[Hashable, Any], function: Any, original: Any) -> Any:
        def compute(self: Any, one: Any, other: Any, *more: bool, **named: bool) -> Any:
            key = _operand_key(one, tensor), _operand_key(other, tensor)
            way = ways.get(key, 0)
            if way is None or self.builder.options.debug:
                return original(self, one, other, *more, **named)
            if way == 0:
                found = original(self, one, other, *more, **named)
                ways[key] = _way(one, other, found, function, tensor)
                return found
            first, second, scale, attributes, dtype = way
            first = one.handle.data if first is None else first
            second = other.handle.data if second is None else second
            handle = object.__new__(handle_of)
            handle.data = function(first, second if scale == 0 else scale * second.astype(np.uint64))
            handle.dtype, handle.attr = dtype, {}
            found = object.__new__(tensor)
            found.__dict__.update(attributes)
            found.__dict__["handle"] = handle
            return found

        return compute

    for name, function in OPERATIONS.items():
        setattr(TritonSemantic, name, made({}, function, getattr(TritonSemantic, name)))
    patch = interpreter._patch_attr

    def direct(name: str) -> Any:
        own, semantic = SIGNS[name], interpreter.interpreter_semantic
        compute, more = getattr(TritonSemantic, own), (True,) if own in ARITHMETIC else ()

        def call(self: Any, other: Any) -> Any:
            return compute(semantic, self, other.value if isinstance(other, core.constexpr) else other, *more)

        return call

    def patched(target: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        if target is tensor and name in SIGNS:
            scope.set_attr(target, name, direct(name))
        else:
            patch(target, name, member, builder, scope)

    interpreter._patch_attr = patched


def _operand_key(operand: Any, tensor: Any) -> Hashable:
    if type(operand) is tensor:
        return operand.dtype.name, operand.handle.data.shape, type(operand.type).__name__
    # as words, since -0.0 is equal to 0.0, and True to 1
    return repr(operand)


def _way(one: Any, other: Any, found: Any, function: Any, tensor: Any) -> Any:
    """How numpy computes what Triton `found` of both operands: numbers in their places, the bytes of what pointers point to, and
    the attributes of what is found; None where it would not have the same bits."""
    tensors = [each for each in (one, other) if type(each) is tensor]
    kinds = {each.dtype.name for each in tensors}
    scale, numbers = 0, list[Any]([None, None])
    if function is np.add and len(tensors) == 2 and one.dtype.is_ptr() and other.dtype.name in KNOWN:
        scale = max(1, one.dtype.element_ty.primitive_bitwidth // 8)
        if other.dtype.is_int_unsigned():
            return None
    elif len(kinds) != 1 or not kinds <= (KNOWN if function in ARITHMETIC.values() else KNOWN | {"int1"}):
        return None
    else:
        kind = tensors[0].handle.data.dtype
        for place, each in enumerate((one, other)):
            if type(each) is not tensor:
                if not isinstance(each, int | float) or (kind.kind != "f" and not isinstance(each, int)):
                    return None
                numbers[place] = np.array([each], kind)
    first, second = (each.handle.data if number is None else number for each, number in zip((one, other), numbers, strict=True))
    again = function(first, second if scale == 0 else scale * second.astype(np.uint64))
    expected = found.handle.data
    if again.dtype != expected.dtype or again.shape != expected.shape or again.tobytes() != expected.tobytes():
        return None
    attributes = {name: value for name, value in vars(found).items() if name != "handle"}
    return numbers[0], numbers[1], scale, attributes, found.handle.dtype
