"""How a head is held where it drafts. Its matrices may have 8 or 4 bits a weight, as the copy of the model that it drafts for
has: what is read for each token is then a half or a quarter, and its guesses, which the exact model checks, are nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..quantizers import Linear, Quantizer, Tensors, quantised, quantizer
from . import DraftHead
from .tensors import Values

# Bits of a weight that are as the model computes.
WHOLE = 16
QUANTIZERS = {8: "int8", 4: "int4"}
# Output heads of a head's own have no fewer bits: which of two tokens is likelier is decided there.
OUTPUTS = "output", "outputs"
OUTPUT_BITS = 8
# Rows of a matrix that are read at a time: whole blocks.
ROWS = 1024

# The linear map of a quantised weight of this shape, for rows of this dtype.
Multiply = Callable[[Quantizer, Tensors, tuple[int, int], torch.dtype], Linear]
# Told the name and values of what was read; raises for values that cannot be.
Check = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Holding:
    """What a head computes in, where, and with how many bits a weight."""

    dtype: torch.dtype
    where: str = "cpu"
    # 16, 8 or 4.
    bits: int = WHOLE
    # Needed for fewer than 16.
    multiply: Multiply | None = None


class FewBits(nn.Module):
    """A Linear whose weight is quantised: `tensors`, where they stay, are the buffers of the same names."""

    def __init__(self, linear: nn.Linear, kind: Quantizer, tensors: Tensors, holding: Holding):
        super().__init__()
        self.kind = kind
        self.shape = _shape(linear)
        # It has no values yet where the head has none.
        self.bias = linear.bias
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        assert holding.multiply is not None, "few bits need a product"
        self._linear = holding.multiply(kind, tensors, self.shape, holding.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self._linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def check_bits(bits: int, option: str) -> None:
    """Raise UsageError unless a head can be held in so many bits; `option` is what asks for them."""
    if bits not in (WHOLE, *QUANTIZERS):
        raise UsageError(f"{option} must be one of {', '.join(map(str, sorted((WHOLE, *QUANTIZERS))))}, got {bits}.")


def tensor_bytes(head: DraftHead, dtype: torch.dtype, bits: int) -> int:
    """Bytes of all tensors of `head`, if it computes in `dtype` and is held in so many bits."""
    small = {f"{name}.weight": kind.size(*_shape(linear), dtype) for name, linear, kind in _matrices(head, bits)}
    others = [tensor for name, tensor in head.state_dict().items() if name not in small]
    sizes = (tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize) for tensor in others)
    total: int = sum(small.values()) + sum(sizes)
    return total


def hold(
    head: DraftHead, values: Iterable[tuple[str, Values]], holding: Holding, check: Check = lambda name, tensor: None
) -> DraftHead:
    """Give `head`, which has no values yet, those of all its tensors, as `holding` says; it is not to be trained.

    A matrix of few bits is read a piece at a time."""
    matrices = {f"{name}.weight": (name, linear, kind) for name, linear, kind in _matrices(head, holding.bits)}
    found: dict[str, Tensor] = {}
    for name, own in values:
        if name in matrices:
            module, linear, kind = matrices[name]
            pieces = _converted(name, own.rows(ROWS), holding, check)
            tensors = {key: tensor.to(holding.where) for key, tensor in quantised(kind, pieces, own.shape[0]).items()}
            head.set_submodule(module, FewBits(linear, kind, tensors, holding))
            found |= {f"{module}.{key}": tensor for key, tensor in tensors.items()}
        else:
            found[name] = next(_converted(name, [own.whole()], holding, check)).to(holding.where)
    head.load_state_dict(found, assign=True)
    return head.requires_grad_(False).eval()


def _converted(name: str, pieces: Iterable[Tensor], holding: Holding, check: Check) -> Iterator[Tensor]:
    """`pieces` of the tensor `name` in the type that the head computes in, checked."""
    for piece in pieces:
        piece = piece.to(holding.dtype) if piece.is_floating_point() else piece
        check(name, piece)
        yield piece


def _matrices(head: DraftHead, bits: int) -> Iterator[tuple[str, nn.Linear, Quantizer]]:
    """The Linears of `head` that are quantised where it is held in so many bits, with their names, and what quantises each."""
    if bits == WHOLE:
        return
    for name, module in head.named_modules():
        # Others of its kind may do more than multiply.
        if type(module) is nn.Linear:
            own = max(bits, OUTPUT_BITS) if name.split(".")[0] in OUTPUTS else bits
            kind = quantizer(QUANTIZERS[own])
            if kind.applies(*_shape(module)):
                yield name, module, kind


def _shape(linear: nn.Linear) -> tuple[int, int]:
    outputs, inputs = linear.weight.shape
    return outputs, inputs
