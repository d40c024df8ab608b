"""Linears that lie whole in fast memory, such as routers, where a pass is one forward: each row is multiplied for itself there.

On a device torch sums a row in an order that depends on how many there are: what is nearly equal could be decided otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..kernels.expert_kernels import WholeProduct

if TYPE_CHECKING:
    from .streamed import CurrentPass


class RowLinears(TorchFunctionMode):
    """While entered, torch's linear function is `product`."""

    def __init__(self, product: WholeProduct) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = self.product(input.reshape(-1, input.shape[-1]), weight).view(*input.shape[:-1], len(weight))
        return found if bias is None else found + bias


def by_rows(model: nn.Module, current: CurrentPass, kind: type, product: WholeProduct) -> int:
    """Let modules of `model` with a matrix of their own multiply by `product` in passes of this `kind`; returns how many do."""
    count = 0
    for module in _deciding(model):
        object.__setattr__(module, "forward", _told_apart(module.forward, current, kind, product))
        count += 1
    return count


def _deciding(model: nn.Module) -> Iterator[nn.Module]:
    """Modules with a matrix that does not stream and is not looked up by token."""
    for module in model.modules():
        matrices = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() == 2]
        if matrices and not isinstance(module, nn.Embedding):
            yield module


def _told_apart(forward: Callable[..., Any], current: CurrentPass, kind: type, product: WholeProduct) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        if not isinstance(current.under_way, kind):
            return forward(*given, **named)
        with RowLinears(product):
            return forward(*given, **named)

    return call
