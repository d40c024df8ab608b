"""Vector code for ARM: it is compiled for it here, has the instructions that it should have, and, where there is an emulator and a
linker, gives the bits that it gives on this machine."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llvmlite import binding, ir

from understudy.kernels import (
    bfdot,
    bit_stream,
    cache_lines,
    dot,
    float_dot,
    instructions,
    residual_bits,
    softmax,
    trailing,
)
from understudy.kernels.byte_dot import WAYS, way
from understudy.kernels.instructions import SETS
from understudy.kernels.vector import LONG

ARM = [each for each in SETS if each.machine == "aarch64"]
TRIPLE = "aarch64-unknown-linux-gnu"
RUNNERS = ("qemu-aarch64", "aarch64-linux-gnu-gcc")


class _Context:
    """What vector code asks of numba's context."""

    def get_dummy_value(self) -> None:
        return None

    def compile_internal(self, builder: Any, function: Any, signature: Any, arguments: Any) -> Any:
        """A call of a function that is compiled elsewhere."""
        kind = ir.FunctionType(LONG, [LONG] * len(arguments))
        known = builder.module.globals.get(function.__name__)
        return builder.call(known or ir.Function(builder.module, kind, function.__name__), arguments)


def machine_for(chosen: instructions.InstructionSet) -> Any:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLE)
    return target.create_target_machine(cpu=chosen.cpu, features=chosen.llvm_features, opt=3, reloc="pic")


def compiled_for(chosen: instructions.InstructionSet, counts: int, write: Callable[..., Any]) -> tuple[str, bytes]:
    """Assembly and object of a function `kernel` of `counts` int64s, whose body `write` writes, for the processors of `chosen`."""
    module = ir.Module("kernel")
    module.triple = TRIPLE
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [LONG] * counts), "kernel")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    write(_Context(), builder, *function.args)
    builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    machine = machine_for(chosen)
    options = binding.create_pipeline_tuning_options(speed_level=3)
    binding.create_pass_builder(machine, options).getModulePassManager().run(parsed, binding.create_pass_builder(machine, options))
    return machine.emit_assembly(parsed), machine.emit_object(parsed)


@pytest.fixture(params=ARM, ids=lambda each: each.name)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> instructions.InstructionSet:
    """A set of ARM's that kernels are made for."""
    has = request.param.needs.issuperset
    for module in (bfdot, bit_stream, dot, float_dot):
        monkeypatch.setattr(module, "has", lambda *features: has(features))
    monkeypatch.setattr("understudy.kernels.byte_dot.has", lambda *features: has(features))
    return request.param


def group_of(bits: int, rows: int) -> Callable[..., Any]:
    return lambda context, builder, *a: dot.GroupDot(context, builder, bits, rows, dot.best(bits), 4096, *a).add_all()


def columns_of(rows: int) -> Callable[..., Any]:
    return lambda context, builder, *a: bfdot.ColumnsDot(context, builder, rows, *a).loop()


WANTED = {"neonbf16": ("usdot", "usdot"), "neondot": ("sdot", "sdot"), "neon": ("smull", "smull")}


def test_bytes_are_multiplied_by_the_instructions_of_the_set(chosen: instructions.InstructionSet) -> None:
    for bits, wanted in zip((4, 8), WANTED[chosen.name], strict=True):
        code, _ = compiled_for(chosen, 7, group_of(bits, 4))
        assert f"\t{wanted}" in code and "fmul" in code


def test_exact_products_are_made_by_the_instructions_of_the_set(chosen: instructions.InstructionSet) -> None:
    code, _ = compiled_for(chosen, 5, columns_of(4))
    assert ("\tbfdot\t" in code) == (chosen.name == "neonbf16")
    assert ("\tfmla\t" in code) == (chosen.name != "neonbf16")


def test_float_products_are_made_by_the_instructions_of_the_set(chosen: instructions.InstructionSet) -> None:
    def multiplied(context: Any, builder: Any, *arguments: Any) -> None:
        float_dot._FloatDot(context, builder, 4, *arguments).loop()

    def widened(context: Any, builder: Any, source: Any, target: Any) -> None:
        code = float_dot.Code(context, builder)
        code.store(float_dot.halves_widened(code, code.load(source, float_dot.Vector(float_dot.HALF, 16))), target)

    code, _ = compiled_for(chosen, 5, multiplied)
    assert "\tfmla\t" in code and "\tbl\t" not in code
    code, _ = compiled_for(chosen, 2, widened)
    assert "\tfcvtl" in code and "\tbl\t" not in code


def test_float16_is_put_together_by_vectors(chosen: instructions.InstructionSet) -> None:
    def laid(context: Any, builder: Any, brains: Any, own: Any, target: Any) -> None:
        code = trailing._Joint(context, builder)
        for v, words in enumerate(code.words(brains, own)):
            code.store(words, code.at(target, 64 * v), 64)

    def narrowed(context: Any, builder: Any, brains: Any, own: Any) -> None:
        code = trailing._Joint(context, builder)
        for v, words in enumerate(code.words(brains, own)):
            code.store(code.narrowed(words), code.at(brains, 32 * v))

    def apart(context: Any, builder: Any, *arguments: Any) -> None:
        trailing._Joint(context, builder).take_apart(*arguments)

    for count, write, wanted in ((3, laid, "\tushll"), (2, narrowed, "\tfadd\tv"), (3, apart, "\txtn")):
        code, _ = compiled_for(chosen, count, write)
        assert wanted in code and "\tbl\t" not in code


@pytest.mark.parametrize("bits", [2, 4])
def test_residuals_are_decoded(bits: int, chosen: instructions.InstructionSet) -> None:
    def write(context: Any, builder: Any, codes: Any, scales: Any, dense: Any, stream: Any, block: Any) -> None:
        code = residual_bits._TileCode(context, builder, bits, scales)
        code.read(code.bins(codes), dense, stream, LONG(0), block)

    code, _ = compiled_for(chosen, 5, write)
    assert "_deposit" in code and "fmul" in code and "umax" in code


def test_a_drafts_attention_calls_nothing(chosen: instructions.InstructionSet) -> None:
    def gated(context: Any, builder: Any, first: Any, second: Any) -> None:
        code = softmax.Exponentials(context, builder)
        opened = [code.silu(code.load(first, softmax.FLOATS)), code.gelu(code.load(second, softmax.FLOATS))]
        code.store(builder.fmul(*opened), first)

    def weighed(context: Any, builder: Any, *arguments: Any) -> None:
        cache_lines.LineCode(context, builder, 1, 4, 1).weigh(*arguments)

    for counts, write in ((2, gated), (8, weighed)):
        code, _ = compiled_for(chosen, counts, write)
        assert "\tfmla\t" in code and "\tbl\t" not in code


MAIN = """
#include <stdio.h>
#include <stdint.h>
void kernel(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
static char codes[4096], x[256], scales[256], steps[32]; static float out[256];
int main(void) {
    fread(codes, 1, CODES, stdin); fread(x, 1, 256, stdin); fread(scales, 1, 256, stdin); fread(steps, 1, 32, stdin);
    kernel((int64_t)codes, (int64_t)x, 64, 64, (int64_t)scales, (int64_t)steps, (int64_t)out);
    fwrite(out, 4, 256, stdout);
    return 0;
}
"""


def emulated(place: Path, built: bytes, given: list[Any]) -> Any:
    """What the object `built` leaves in `out`, run by the emulator."""
    (place / "kernel.o").write_bytes(built)
    (place / "main.c").write_text(MAIN)
    size = f"-DCODES={given[0].nbytes}"
    files = [place / name for name in ("main.c", "kernel.o", "program")]
    subprocess.run([RUNNERS[1], "-static", size, *map(str, files[:2]), "-o", str(files[2])], check=True, capture_output=True)
    data = b"".join(each.tobytes() for each in given)
    ran = subprocess.run([RUNNERS[0], "-cpu", "max", str(files[2])], input=data, check=True, capture_output=True)
    return np.frombuffer(ran.stdout, np.float32).reshape(4, 64)


@pytest.mark.skipif(not all(map(shutil.which, RUNNERS)), reason=f"needs {' and '.join(RUNNERS)}")
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_an_emulator_finds_the_bits_of_this_machine(bits: int, chosen: instructions.InstructionSet, tmp_path: Path) -> None:
    random = np.random.default_rng(bits)
    codes = random.integers(0, 256, 64 * 8 * bits, np.uint8)
    x = random.integers(-127, 128, (4, 64), np.int8)
    scales = (random.standard_normal((64, 2)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    steps = random.random((4, 2)).astype(np.float32)
    _, built = compiled_for(chosen, 7, group_of(bits, 4))
    made = SimpleNamespace(codes=codes, x=x, scales=scales, steps=steps)
    found = emulated(tmp_path, built, [codes, x, scales, steps])
    assert np.array_equal(found, here(bits, made))


def here(bits: int, given: Any) -> Any:
    """The same by this machine, in float32."""
    import numba

    add_group = dot.group_dot(bits, 4, "float32")

    @numba.njit
    def call(codes: int, x: int, scales: int, steps: int, out: int) -> None:
        add_group(codes, x, 64, 64, scales, steps, out)

    out = np.zeros((4, 64), np.float32)
    call(*[each.ctypes.data for each in (given.codes, given.x, given.scales, given.steps, out)])
    return out


FASTEST = {"neonbf16": ["i8mm", "i8mm"], "neondot": ["dotprod", "dotprod-all"], "neon": ["neon", "neon-all"]}


def test_the_fastest_way_that_takes_the_codes_is_chosen(chosen: instructions.InstructionSet) -> None:
    assert [each.name for each in (way(28), way(255)) if each] == FASTEST[chosen.name]
    assert len({each.name for each in WAYS}) == len(WAYS)
