"""The way of a GPU for codes of 4 bits, in the interpreter: its instructions for whole words are followed one by one."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

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


@pytest.fixture
def followed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_product, "INTERPRETED", False)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_inline_asm", inline_asm)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def made(rows: int, columns: int, group: int) -> tuple[draft_product.GroupedProduct, Tensor]:
    """A product, and the weight it multiplies by in float64."""
    maker = quantizer(f"int4:group={group}")
    tensors = maker.quantize(torch.randn(rows, columns) * 0.05 + 0.01)
    product = draft_product.GroupedProduct(tensors["codes"], tensors["scales"], rows)
    return product, maker.dequantize(tensors, (rows, columns)).double()


def near(found: Tensor, exact: Tensor) -> bool:
    return bool((found.double() - exact).norm() < 0.01 * exact.norm())


@pytest.mark.usefixtures("followed_by_hand")
@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize(("columns", "group", "rows"), [(448, 64, 5), (256, 128, 19), (96, 32, 8)])
def test_it_is_the_product(columns: int, group: int, rows: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, after a norm, three of one input with a bias and something added, and one half gated by the other: against float64."""
    monkeypatch.setattr(draft_product, "shared_out", lambda _, steps, *__: draft_product.ColumnShares(shares, -(-steps // shares)))
    torch.manual_seed(columns)
    products, weights = zip(*(made(outputs, columns, group) for outputs in (130, 64, 200)), strict=True)
    gates, gating = zip(*(made(150, columns, group) for _ in range(2)), strict=True)
    x, norm = torch.randn(rows, columns).bfloat16(), Norm(torch.rand(columns) + 0.5, 1e-3)
    added, bias, biases = torch.randn(rows, 394).bfloat16(), torch.randn(64), [torch.randn(150), torch.randn(150)]
    normed = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    assert near(products[0](x), x.double() @ weights[0].T)
    assert near(draft_product.JoinedGrouped(products[:1], norm)(x), normed @ weights[0].T)
    together = draft_product.JoinedGrouped(products, norm, [None, bias, None])
    exact = torch.cat([normed @ weight.T for weight in weights], 1) + added.double()
    exact[:, 130:194] += bias.double()
    found = together(x, added)
    assert near(found, exact) and torch.equal(found, together(x, added))
    gate, up = (normed @ weight.T + more.double() for weight, more in zip(gating, biases, strict=True))
    assert near(draft_product.JoinedGrouped(gates, norm, biases, gated=True)(x), silu(gate) * up)
    launch = together.launches[0]
    assert launch.pairs == 2 + 1 + 2 and not launch.counters.any()
