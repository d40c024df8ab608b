"""How the exact weights of one Linear multiply, whatever they are stored as. The plan never changes a bit of the product.

Where the device has a product for it, weights multiply as they lie or are rebuilt on the way, for just the rows there are.
Elsewhere a part is decoded first, and multiplies tiles of one fixed shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...codecs import FALLBACK, Codec, Encoded, codec
from ...devices import Device, ExactProduct
from ...errors import UsageError
from ...kernels.exact_operand import Operand
from ...kernels.pack import BLOCK
from ...quantizers import Quantizer
from ...weights.entries import LinearEntry

# parts that there is room for on a device to decode, before they multiply in one go
TOGETHER = 8
# the bytes of a part, its first block, and how many blocks it has
Piece = tuple[Tensor, int, int]


def decoding_bytes(largest: int, device: Device) -> int:
    """Bytes that parts are decoded into on `device`, where the largest part takes `largest`."""
    return largest * (TOGETHER if device.own_memory else 1)


class ExactLinear:
    """The exact weights of one Linear on `device`, part by part. UsageError where the device cannot decode them.

    `tensors`: the substitute, empty where the codec needs none. `buffer`: bytes that parts are decoded into. `bare`: the weight
    is there as it is, whatever the entry's codec."""

    def __init__(
        self,
        entry: LinearEntry,
        quantizer: Quantizer,
        tensors: Mapping[str, Tensor],
        buffer: Tensor,
        device: Device,
        *,
        bare: bool = False,
    ) -> None:
        self.entry = entry
        self.quantizer = quantizer
        self.tensors = tensors
        self.buffer = buffer
        self.device = device
        self.codec: Codec = codec(FALLBACK if bare else entry.codec)
        # by first block: an operand that can be moved, and where its bytes lie now
        self._operands: dict[int, tuple[Operand, int]] = {}
        # by the type of rows
        self._products: dict[torch.dtype, ExactProduct | None] = {}
        self.columns = entry.shape[1]
        if refusal := device.refusal(self.codec):
            raise UsageError(refusal)

    def product(self, dtype: torch.dtype) -> ExactProduct | None:
        """What multiplies rows of `dtype` by parts that are not decoded first; None where there is nothing that does."""
        if dtype not in self._products:
            self._products[dtype] = self.device.exact_product(self.entry.dtype, self.columns, dtype)
        return self._products[dtype]

    def on_host(self, host: Device) -> ExactLinear:
        """The same weights, as `host` decodes them in memory of its own."""
        tensors = {name: tensor.to(host.where) for name, tensor in self.tensors.items()}
        return ExactLinear(self.entry, self.quantizer, tensors, self.buffer.new_empty(self.buffer.shape, device=host.where), host)

    @property
    def one_by_one(self) -> bool:
        """Whether one operand must be done with before the next is asked for."""
        return self.codec.linked

    def operand(self, data: Tensor, first: int, count: int) -> tuple[Operand, int]:
        """Blocks first to first + count - 1 from their bytes `data`, as `product` takes them, and `first`.

        Valid until the next call for these blocks, whose bytes may lie elsewhere then: it is made once and moved. For parts stored
        in the source file it is valid only until the next call for any (see `one_by_one`)."""
        start = data.data_ptr()
        if known := self._operands.get(first):
            operand, before = known
            operand.move(start - before, data)
        else:
            operand = self.codec.operand(self._encoded((data, first, count)), self.room(count))
            if not operand.lies_in(data):
                return operand, first
        self._operands[first] = operand, start
        return operand, first

    def blocks(self, data: Tensor, first: int, count: int) -> Tensor:
        """The weights [count, K, 64] of these blocks, valid until the next call for any Linear: all share one buffer."""
        return self.decode((data, first, count), self.room(count))

    def decode(self, part: Piece, room: Tensor | None) -> Tensor:
        """The weights of `part`, in `room` unless they are a view of its bytes."""
        return self.device.decode(self.codec, self._encoded(part), room)

    def _encoded(self, part: Piece) -> Encoded:
        data, first, count = part
        return Encoded(data.view(-1), count, self.columns, self.entry.dtype, self.substitute(first, count))

    @property
    def most_blocks(self) -> int:
        """How many blocks there is room to decode at a time."""
        return self.buffer.numel() // (self.columns * BLOCK * self.entry.dtype.itemsize)

    def room(self, count: int) -> Tensor | None:
        """Where `count` blocks are decoded; None where decoding is a view of the data."""
        if self.codec.in_place:
            return None
        shape, dtype = (count, self.columns, BLOCK), self.entry.dtype
        return self.buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def substitute(self, first: int, count: int) -> Mapping[str, Tensor]:
        """What decoding `count` blocks from block `first` on needs of the substitute."""
        return self.quantizer.cut(self.tensors, first, count) if self.codec.needs_substitute else {}

    def multiply(self, parts: Sequence[Piece], tiles: Sequence[Tensor], out: Tensor) -> None:
        """Multiply `tiles` [rows, K] by decoded `parts`, into `out` [tiles, rows, all blocks, 64].

        For where there is neither `product` nor the device's product of rows. Tiles have always the same shape and are multiplied
        one by one, and parts too, so that a row's bits depend neither on other rows nor on what happens to lie together."""
        for part in parts:
            blocks, first = self.blocks(*part), part[1]
            for x, y in zip(tiles, out, strict=True):
                y[:, first : first + len(blocks)].copy_(torch.matmul(x, blocks.to(out.dtype)).transpose(0, 1))
