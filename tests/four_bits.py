"""What products of bfloat16 rows and codes of 4 bits on a GPU are compared with, whatever launches them."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from understudy.kernels.join_form import GateKind, JoinForm, Norm
from understudy.quantizers import quantizer


def made(rows: int, columns: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales of a weight, and what it is multiplied by in float64."""
    maker = quantizer(f"int4:group={group}")
    tensors = maker.quantize(torch.randn(rows, columns) * 0.05 + 0.01)
    return tensors["codes"], tensors["scales"], maker.dequantize(tensors, (rows, columns)).double()


def near(found: Tensor, exact: Tensor) -> bool:
    return bool((found.double() - exact).norm() < 0.01 * exact.norm())


def compare(columns: int, group: int, rows: int) -> None:
    """Alone, after a norm, three of one input with a bias and something added, and one half gated by the other: against float64,
    and the same each time."""
    from understudy.kernels.gpu.draft_product import GroupedProduct, JoinedGrouped

    torch.manual_seed(columns)
    sizes = (130, 64, 200, 150, 150)
    weights = [made(outputs, columns, group) for outputs in sizes]
    products = [GroupedProduct(codes, scales, outputs) for (codes, scales, _), outputs in zip(weights, sizes, strict=True)]
    x, norm = torch.randn(rows, columns).bfloat16(), Norm(torch.rand(columns) + 0.5, 1e-3)
    added, bias, biases = torch.randn(rows, 394).bfloat16(), torch.randn(64), [torch.randn(150), torch.randn(150)]
    normed = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    assert near(products[0](x), x.double() @ weights[0][2].T)
    assert near(JoinedGrouped(products[:1], JoinForm(norm))(x), normed @ weights[0][2].T)
    together = JoinedGrouped(products[:3], JoinForm(norm, [None, bias, None]))
    exact = torch.cat([normed @ weight.T for _, _, weight in weights[:3]], 1) + added.double()
    exact[:, 130:194] += bias.double()
    found = together(x, added)
    assert near(found, exact) and torch.equal(found, together(x, added))
    gate, up = (normed @ weight.T + more.double() for (_, _, weight), more in zip(weights[3:], biases, strict=True))
    assert near(JoinedGrouped(products[3:], JoinForm(norm, biases, GateKind.SILU))(x), silu(gate) * up)
    (launch,) = together.launches
    assert launch.pairs == 2 + 1 + 2 and not launch.counters.any()
