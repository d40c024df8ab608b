"""Blocks of several operands, each taken once."""

import pytest
import torch

from understudy.kernels.exact_operand import Operand
from understudy.kernels.exact_product import BlockProduct
from understudy.kernels.pack import block


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [(1,), (3, 1, 2), (1, 1, 1, 5)])
def test_every_block_of_every_operand_is_multiplied_once(sizes: tuple[int, ...], kind: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64 * sum(sizes), 64).to(kind), torch.randn(2, 64).to(kind)
    whole, operands, first = block(weight), [], 0
    for size in sizes:
        operands.append((Operand.plain(whole[first : first + size].contiguous()), first))
        first += size
    out, expected = torch.full((2, first, 64), torch.nan, dtype=kind), torch.empty(2, first, 64, dtype=kind)
    BlockProduct(operands, rows=kind)([x], out)
    BlockProduct([(Operand.plain(whole), 0)], rows=kind)([x], expected)
    assert torch.equal(out, expected) and out.isfinite().all()
