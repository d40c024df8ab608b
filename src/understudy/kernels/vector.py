"""Vector code for use inside compiled kernels, written as LLVM instructions: short names for what the kernels need.

LLVM turns vectors into the instructions that the machine has, so the code runs everywhere. It is laid out for
AVX-512."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic

BIT, BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT = ir.FloatType()
cgutils: Any = numba_cgutils
Vector = ir.VectorType
WORDS, FLOATS = Vector(WORD, 16), Vector(FLOAT, 16)


class Code:
    """Writes instructions at the current place of `b`, numba's builder. Addresses are int64 values."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.b = context, builder

    def load(self, address: Any, kind: Any, align: int = 1) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, address: Any, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = align

    def at(self, address: Any, offset: Any) -> Any:
        """`address` and `offset` bytes."""
        return self.b.add(address, LONG(offset) if isinstance(offset, int) else offset)

    def all(self, kind: Any, value: float) -> Any:
        """A constant vector of one value."""
        return self.constant(kind, [value] * kind.count)

    def constant(self, kind: Any, values: list[Any]) -> Any:
        """A constant vector."""
        return ir.Constant(kind, values)

    def spread(self, value: Any, count: int = 16) -> Any:
        """A vector of `count` times `value`."""
        kind = Vector(value.type, count)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
        return self.pick(first, first, [0] * count)

    def pick(self, first: Any, second: Any, order: list[int]) -> Any:
        """The elements of two vectors, one after the other, in this order."""
        return self.b.shuffle_vector(first, second, ir.Constant(Vector(WORD, len(order)), order))

    def folded(self, vector: Any, both: Callable[[Any, Any], Any]) -> Any:
        """One element of all, by joining halves with `both`."""
        return self.b.extract_element(self.folded_each([vector], both), WORD(0))

    def folded_each(self, vectors: Sequence[Any], both: Callable[[Any, Any], Any]) -> Any:
        """`folded` of 1, 2 or 4 vectors of 16 or more, side by side: of several in fewer steps, with the same bits."""
        held, half = list(vectors), vectors[0].type.count
        while half := half // 2:
            pairs = list(zip(held[::2], held[1::2], strict=True)) if len(held) > 1 else [(held[0], None)]
            held = []
            for first, second in pairs:
                lanes = range(first.type.count * (1 if second is None else 2))
                halves = [[lane for lane in lanes if lane // half % 2 == side] for side in (0, 1)]
                held.append(both(*(self.pick(first, second or first, order) for order in halves)))
        return held[0]

    def intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call one of LLVM's own functions."""
        function = self.b.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [argument.type for argument in arguments])
            function = ir.Function(self.b.module, kind, name)
        return self.b.call(function, arguments)

    def floats(self, address: Any, itemsize: int) -> Any:
        """The 16 numbers of `itemsize` bytes at `address`, 2 (bfloat16) or 4 (float32), as float32."""
        if itemsize == 4:
            return self.load(address, FLOATS)
        return self.b.bitcast(self.b.shl(self.b.zext(self.load(address, Vector(HALF, 16)), WORDS), self.all(WORDS, 16)), FLOATS)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c of 16 numbers, rounded once where the machine can."""
        return self.intrinsic("llvm.fmuladd.v16f32", FLOATS, a, b, c)

    def repeated(self, count: Any, begin: Sequence[Any], step: Callable[[Any, Sequence[Any]], Sequence[Any]]) -> Sequence[Any]:
        """What `step` makes of 0 to count - 1 and of what it made before, in the end."""
        b = self.b
        before, test, body, done = b.block, *(b.append_basic_block(name) for name in ("test", "body", "done"))
        b.branch(test)
        b.position_at_end(test)
        i = b.phi(LONG)
        held: Sequence[Any] = [b.phi(value.type) for value in begin]
        b.cbranch(b.icmp_signed("<", i, count), body, done)
        b.position_at_end(body)
        following = step(i, held)
        i.add_incoming(LONG(0), before)
        i.add_incoming(self.at(i, 1), b.block)
        for phi, first, value in zip(held, begin, following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, b.block)
        b.branch(test)
        b.position_at_end(done)
        return held

    def prefetch(self, address: Any) -> None:
        """Ask memory for the line of 64 bytes at `address`, which will be read soon. Any address is allowed."""
        pointer = self.b.inttoptr(address, BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, WORD, WORD, WORD])
        function = self.b.module.globals.get("llvm.prefetch.p0") or ir.Function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [pointer, WORD(0), WORD(3), WORD(1)])

    def room(self, kind: Any, count: int) -> Any:
        """The address of memory for `count` values of this kind, which the running kernel has until it ends."""
        return self.b.ptrtoint(cgutils.alloca_once(self.b, kind, count), LONG)

    def over(self, end: Any, step: int, first: Any = None) -> Any:
        """A loop over first (or 0), first + step, ... below `end`: `with` gives the number and another value."""
        start = LONG(0) if first is None else first
        return cgutils.for_range_slice(self.b, start, end, LONG(step), LONG)

    def ours(self, function: Any, *arguments: Any) -> Any:
        """Call a Python function of int64s, compiled here."""
        kinds = [types.int64] * len(arguments)
        return self.context.compile_internal(self.b, function, types.int64(*kinds), arguments)


@intrinsic
def _prefetch(typing: Any, address: Any, count: Any) -> Any:
    """Ask memory for the `count` lines of 64 bytes from `address` on, which will be read soon. Any address is allowed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, count = arguments
        code = Code(context, builder)

        def of_line(line: Any, _: Sequence[Any]) -> Sequence[Any]:
            code.prefetch(code.at(start, builder.shl(line, LONG(6))))
            return []

        code.repeated(count, [], of_line)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


prefetch: Any = _prefetch
