"""The kernels compile to machine code for real GPUs, which needs Triton but no GPU; and what must not be fused is not."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

RESIDUAL = {
    "data": "*u8", "longs": "*i64", "words": "*i32", "halves": "*i16", "codes": "*u8", "scales": "*i16", "stride": "i32",
    "out": "*i16", "count": "i32", "groups": "i32",
}  # fmt: skip
PRODUCT = {
    "x": "*bf16", "codes": "*u8", "scales": "*i16", "y": "*fp32", "m": "i32", "columns": "i32", "count": "i32",
}  # fmt: skip
KERNELS = {
    "residual": (
        "residual",
        "_decode",
        RESIDUAL,
        {"group": 64, "COLUMNS": 32, "LISTED": 64},
        {"enable_fp_fusion": False},
    ),
}
SCRIPT = """
import importlib, json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
module, name, signature, constants, options = json.loads(sys.argv[1])
kernel = getattr(importlib.import_module("understudy.kernels.gpu." + module), name)
signature |= {name: "constexpr" for name in constants}
source = ASTSource(kernel, signature=signature, constexprs=constants)
made = compile(source, target=GPUTarget("cuda", int(sys.argv[2]), 32), options=options)
assert made.asm["cubin"]
print(made.asm["ptx"])
"""


def instructions(kernel: str, target: int, folder: Path) -> Counter[str]:
    """How often each PTX instruction is in the kernel, compiled in a process where Triton is not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", SCRIPT, json.dumps(KERNELS[kernel]), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    words = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return Counter(word.rstrip(";") for word in words)


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles(kernel: str, target: int, tmp_path: Path) -> None:
    found = instructions(kernel, target, tmp_path)
    assert found.total() > 100
    assert not any("ftz" in word for word in found), "subnormal numbers must not become zeros"
    if KERNELS[kernel][4].get("enable_fp_fusion") is False:
        assert not any("fma" in word for word in found) and any(word.startswith("mul.") for word in found)
