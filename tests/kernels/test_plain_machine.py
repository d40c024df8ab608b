"""On a machine without the instructions the kernels are laid out for, every kernel gives the same bits."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from understudy.kernels import draft_product
from understudy.kernels.instructions import has

# what the code of residuals is laid out for
FAST = ("avx512bw", "avx512vl", "bmi2")
SCRIPT = """
import torch, xxhash
from understudy.codecs import Encoded, codec
from understudy.kernels import draft_product
from understudy.kernels.pack import block
from understudy.kernels.instructions import has
from understudy.quantizers import quantizer

def bits(*tensors):
    return [xxhash.xxh3_64_hexdigest(t.contiguous().view(-1).view(torch.uint8).numpy()) for t in tensors]

torch.manual_seed(0)
weight = torch.randn(130, 128, dtype=torch.bfloat16)
x = torch.randn(3, 128)
for spec in ("int2", "int3", "int4", "int6"):
    made = quantizer(spec).quantize(weight)
    for kind in (torch.float16, torch.bfloat16):
        blocks = block(weight.to(kind) * 0.7)
        data = codec("delta").encode(blocks, made)
        back = codec("delta").decode(Encoded(data, 3, 128, kind, made))
        assert torch.equal(back.view(torch.int16), blocks.view(torch.int16))
        print(*bits(data))
    product = draft_product.Product(made["codes"], made["scales"], 130)
    print(*bits(made["codes"], made["scales"], product(x)))
print(has('avx512bw', 'avx512vl', 'bmi2'), draft_product.note() == "")
"""


@pytest.mark.slow
def test_same_bits() -> None:
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(SCRIPT, "script", "exec"), {})
    native = said.getvalue().split()
    paths = {"UNDERSTUDY_ISA": "", "NUMBA_CPU_NAME": "generic", "PYTHONPATH": draft_product.__file__.rpartition("/understudy/")[0]}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, **paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plain = result.stdout.split()
    assert plain[-2:] == ["False", "False"] and native[-2] == str(has(*FAST))
    assert native[:-2] == plain[:-2]
