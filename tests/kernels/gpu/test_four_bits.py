"""The way of a GPU for codes of 4 bits, in the interpreter: its instructions for whole words are followed one by one."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from understudy.kernels.draft_product import Norm
from understudy.quantizers import quantizer

pytest.importorskip("triton")
from triton.runtime import interpreter

from understudy.kernels.gpu import draft_product
from understudy.kernels.gpu.four_bits import EIGHT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the instructions itself")
U32 = np.uint32


def picked(first: Any, second: Any, selector: int) -> Any:
    """prmt: four of the eight bytes of two words."""
    sources = [word >> U32(8 * i) & U32(255) for word in (first, second) for i in range(4)]
    return sum(sources[(selector >> 4 * i) & 7] << U32(8 * i) for i in range(4))


def followed(asm: str, given: list[Any]) -> dict[str, Any]:
    """The registers after `asm`, whose first inputs are $8 and $9."""
    found = {f"${8 + i}": values for i, values in enumerate(given)}
    for operation, words in re.findall(r"^(\w+)\.b?u?32 ([^;]*);", asm, re.M):
        into, *names = [word.strip() for word in words.split(",")]
        values = [found[name] if name in found else U32(int(name, 0)) for name in names]
        if operation == "prmt":
            found[into] = picked(values[0], values[1], int(values[2]))
        elif operation == "shr":
            found[into] = values[0] >> values[1]
        elif operation == "lop3":
            assert int(values[3]) == 0xEA
            found[into] = (values[0] & values[1]) | values[2]
        else:
            raise AssertionError(operation)
    return found


def inline_asm(self: Any, asm: str, constraints: str, values: Any, types: Any, pure: bool, pack: int) -> Any:
    assert asm == EIGHT.value and pack == 2 and pure
    words = values[0].data.view(U32)
    pairs = words.reshape(-1, 2)
    found = followed(asm, [pairs[:, 0], pairs[:, 1]])
    made = []
    for i in range(8):
        halves = np.stack([found[f"${i}"] & U32(0xFFFF), found[f"${i}"] >> U32(16)], 1).astype(np.uint16)
        made.append(interpreter.TensorHandle(halves.reshape(words.shape), interpreter.tl.bfloat16))
    return SimpleNamespace(get_result=made.__getitem__)


def dot(self: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
    """The interpreter's own takes bfloat16s for integers."""
    wide = [(side.data.astype(U32) << U32(16)).view(np.float32) for side in (a, b)]
    return interpreter.TensorHandle(np.matmul(*wide) + d.data, d.dtype.scalar)


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize(("columns", "group"), [(448, 64), (256, 128), (96, 32)])
def test_it_is_the_product(columns: int, group: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a norm before and without, against float64."""
    monkeypatch.setattr(draft_product, "INTERPRETED", False)
    monkeypatch.setattr(draft_product, "PARTS", 2)
    monkeypatch.setattr(draft_product, "shared_out", lambda *_: draft_product.ColumnShares(shares, 4 // shares))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_inline_asm", inline_asm)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    torch.manual_seed(columns)
    maker = quantizer(f"int4:group={group}")
    tensors = maker.quantize(torch.randn(130, columns) * 0.05 + 0.01)
    weight = maker.dequantize(tensors, (130, columns)).double()
    product = draft_product.GroupedProduct(tensors["codes"], tensors["scales"], 130)
    x, norm = torch.randn(5, columns).bfloat16(), Norm(torch.rand(columns) + 0.5, 1e-3)
    normed = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    for found, exact in (
        (product(x), x.double() @ weight.T),
        (draft_product.JoinedGrouped([product], norm)(x), normed @ weight.T),
    ):
        assert (found.double() - exact).norm() < 0.01 * exact.norm()
