"""A matrix of its own for each head: rows of numbers side by side, head after head, times the matrices of their heads, whose exact
weights lie in memory as they are. The bits of a row depend on no other row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .exact_operand import Operand
from .exact_product import BlockProduct, applies
from .pack import BLOCK, block, blocks_of

# rows that go through torch's product together, the last of them padding: its sums may be in another order where there are fewer
TOGETHER = 32


class HeadProduct:
    """x [n, heads, K] -> [n, heads, N], in the type of x: row i of head h times weights[h], for `weights` [heads, N, K]."""

    def __init__(self, weights: Tensor) -> None:
        self.heads, self.outputs, self.columns = weights.shape
        self._fused: BlockProduct | None = None
        # [heads, K, N], where torch multiplies
        self._plain: Tensor | None = None
        if applies(weights.dtype, self.columns):
            each = blocks_of(self.outputs)
            blocks = torch.empty((self.heads * each, self.columns, BLOCK), dtype=weights.dtype)
            own = blocks.view(self.heads, each, self.columns, BLOCK)
            for weight, room in zip(weights, own, strict=True):
                block(weight, room)
            operands = [(Operand.plain(room), head * each) for head, room in enumerate(own)]
            self._fused = BlockProduct(operands, apart=True)
        else:
            self._plain = weights.transpose(1, 2).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if self._fused is None:
            return torch.cat([self._padded(x[start : start + TOGETHER]) for start in range(0, len(x), TOGETHER)])
        each = blocks_of(self.outputs)
        made = x.new_empty((len(x), self.heads * each, BLOCK))
        self._fused([x.reshape(len(x), -1)], made)
        return made.view(len(x), self.heads, each * BLOCK)[..., : self.outputs]

    def _padded(self, rows: Tensor) -> Tensor:
        assert self._plain is not None
        given = nn.functional.pad(rows, (0, 0, 0, 0, 0, TOGETHER - len(rows))).transpose(0, 1)
        made = torch.matmul(given, self._plain.to(given.dtype)).transpose(0, 1)
        return made[: len(rows)]
