"""How a head is held where it drafts. Its matrices may have 8 or 4 bits a weight, as the copy of the model that it drafts for
has: what is read for each token is then a half or a quarter, and its guesses, which the exact model checks, are nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..kernels.pack import BLOCK
from ..models.kept import streams
from ..models.mixtures.experts import Stack, stacks
from ..quantizers import Linear, Quantizer, Tensors, fitting, quantised, quantizer
from . import DraftHead
from .experts import HeldExperts, MultiplyExperts
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
    # Needed for fewer than 16 where the head has experts.
    experts: MultiplyExperts | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight of a head that something else takes the place of where it is held."""

    # The name of the tensor, and of what takes its place.
    tensor: str
    place: str
    shape: tuple[int, int]
    kind: Quantizer
    # What it is: an nn.Linear, or the matrices of a layer's experts, one below the other.
    of: nn.Linear | Stack

    def held(self, tensors: Tensors, holding: Holding) -> nn.Module:
        """What multiplies by the substitute `tensors` in its place."""
        if isinstance(self.of, nn.Linear):
            return FewBits(self.of, self.kind, tensors, holding)
        assert holding.experts is not None, "few bits of experts need a product"
        return HeldExperts(self.of, self.kind, tensors, holding.dtype, holding.experts)


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
    small = {matrix.tensor: matrix.kind.size(*matrix.shape, dtype) for matrix in _matrices(head, dtype, bits)}
    others = {name: tensor for name, tensor in head.state_dict().items() if name not in small}
    sizes = (tensor.numel() * _type(head, name, tensor, dtype).itemsize for name, tensor in others.items())
    total: int = sum(small.values()) + sum(sizes)
    return total


def unread_bytes(head: DraftHead, dtype: torch.dtype, bits: int, chosen: Mapping[str, int]) -> int:
    """Of these, the bytes of experts that one token does not go to, where it goes to so many of a stack as `chosen` says."""
    small = {matrix.tensor: matrix.kind.size(*matrix.shape, dtype) for matrix in _matrices(head, dtype, bits)}
    found = stacks(head)
    sizes = {name: small.get(name, stack.parameter.numel() * dtype.itemsize) for name, stack in found.items()}
    return sum(size - size * chosen[name] // found[name].experts for name, size in sizes.items())


def hold(
    head: DraftHead, values: Iterable[tuple[str, Values]], holding: Holding, check: Check = lambda name, tensor: None
) -> DraftHead:
    """Give `head`, which has no values yet, those of all its tensors, as `holding` says; it is not to be trained.

    A matrix of few bits is read a piece at a time."""
    matrices = {matrix.tensor: matrix for matrix in _matrices(head, holding.dtype, holding.bits)}
    types = {name: _type(head, name, tensor, holding.dtype) for name, tensor in head.state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, own in values:
        if (matrix := matrices.get(name)) is not None:
            tall = replace(own, shape=matrix.shape)
            pieces = _converted(name, tall.rows(ROWS), holding.dtype, check)
            made = quantised(matrix.kind, pieces, matrix.shape[0])
            tensors = {key: tensor.to(holding.where) for key, tensor in made.items()}
            around, _, own_name = matrix.place.rpartition(".")
            parent = head.get_submodule(around)
            parent._parameters.pop(own_name, None)
            setattr(parent, own_name, matrix.held(tensors, holding))
            found |= {f"{matrix.place}.{key}": tensor for key, tensor in tensors.items()}
        else:
            found[name] = next(_converted(name, [own.whole()], types.get(name, own.dtype), check)).to(holding.where)
    head.load_state_dict(found, assign=True)
    return head.requires_grad_(False).eval()


def _type(head: DraftHead, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """That of the numbers of `tensor`, called `name`, where `head` computes in `dtype`."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if head.in_float32(name, dtype) else dtype


def _converted(name: str, pieces: Iterable[Tensor], dtype: torch.dtype, check: Check) -> Iterator[Tensor]:
    """`pieces` of the tensor `name`, their numbers in `dtype` unless they are whole, checked."""
    for piece in pieces:
        piece = piece.to(dtype) if piece.is_floating_point() else piece
        check(name, piece)
        yield piece


def _matrices(head: DraftHead, dtype: torch.dtype, bits: int) -> Iterator[Matrix]:
    """The weights of `head` that are quantised where it computes in `dtype` and is held in so many bits."""
    if bits == WHOLE:
        return
    for name, module in head.named_modules():
        # Others of its kind may do more than multiply, and those that decide are held whole.
        if type(module) is nn.Linear and streams(module, head.in_float32(f"{name}.weight", dtype)):
            own = max(bits, OUTPUT_BITS) if name.split(".")[0] in OUTPUTS else bits
            kind = quantizer(QUANTIZERS[own])
            if kind.applies(*_shape(module)):
                yield Matrix(f"{name}.weight", name, _shape(module), kind, module)
    for name, stack in stacks(head).items():
        # Those of an expert are whole blocks, or all are held as they are.
        if stack.outputs % BLOCK == 0:
            yield Matrix(name, name, stack.shape, fitting(QUANTIZERS[bits], *stack.shape), stack)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    outputs, inputs = linear.weight.shape
    return outputs, inputs
