"""A matrix of its own for each head, on a GPU: as `kernels.head_products`."""

from torch import Tensor

from .exact_product import multiply_heads


class TritonHeads:
    """x [n, heads, K] -> [n, heads, N], in the type of x: row i of head h times weights[h], for `weights` [heads, N, K] that lie
    on the device. The bits of a row depend on no other row."""

    def __init__(self, weights: Tensor) -> None:
        self.heads, self.outputs, self.columns = weights.shape
        self._weights = weights.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return multiply_heads(x, self._weights)
