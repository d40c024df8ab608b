"""How the exact weights of one Linear multiply, whatever they are stored as. The plan never changes a bit of the product.

Where the device has a product for it, weights multiply as they lie or are rebuilt on the way, for just the rows there are.
Elsewhere a part is decoded first, and multiplies tiles of one fixed shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..codecs import FALLBACK, Codec, codec
from ..devices import Device, ExactProduct
from ..errors import UsageError
from ..kernels.exact_product import Operand
from ..kernels.pack import BLOCK
from ..quantizers import Quantizer
from ..weights.entries import LinearEntry


class ExactLinear:
    """The exact weights of one Linear on `device`, part by part. UsageError where the device cannot decode them.

    `tensors`: the substitute, empty where the codec needs none. `buffer`: bytes a part is decoded into. `bare`: the weight
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
        self.columns = entry.shape[1]
        if refusal := device.refusal(self.codec):
            raise UsageError(refusal)

    def product(self, dtype: torch.dtype) -> ExactProduct | None:
        """What multiplies rows of `dtype` by parts that are not decoded first; None where there is nothing that does."""
        return self.device.exact_product(dtype, self.columns) if dtype == self.entry.dtype else None

    @property
    def one_by_one(self) -> bool:
        """Whether one operand must be done with before the next is asked for."""
        return self.codec.linked

    def operand(self, data: Tensor, first: int, count: int) -> tuple[Operand, int]:
        """Blocks first to first + count - 1 from their bytes `data`, as `product` takes them, and `first`.

        For parts stored in the source file it is valid only until the next call (see `one_by_one`)."""
        substitute = self._substitute(first, count)
        return self.codec.operand(data.view(-1), count, self.columns, substitute, self._room(count)), first

    def blocks(self, data: Tensor, first: int, count: int) -> Tensor:
        """The weights [count, K, 64] of these blocks, valid until the next call for any Linear: all share one buffer."""
        substitute, room = self._substitute(first, count), self._room(count)
        return self.device.decode(self.codec, data.view(-1), count, self.columns, self.entry.dtype, substitute, room)

    def _room(self, count: int) -> Tensor | None:
        """Where `count` blocks are decoded; None where decoding is a view of the data."""
        if self.codec.in_place:
            return None
        shape, dtype = (count, self.columns, BLOCK), self.entry.dtype
        return self.buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _substitute(self, first: int, count: int) -> Mapping[str, Tensor]:
        return self.quantizer.cut(self.tensors, first, count) if self.codec.needs_substitute else {}

    def multiply_tiles(self, data: Tensor, first: int, count: int, tiles: Sequence[Tensor], out: Tensor) -> None:
        """Multiply `tiles` [rows, K] one by one by decoded blocks, into `out` [tiles, rows, all blocks, 64].

        For where `product` is None. A row's bits do not depend on the other rows: the device sees to that, or tiles have always
        the same shape."""
        blocks = self.blocks(data, first, count)
        if (multiply := self.device.row_product()) is not None:
            for x, y in zip(tiles, out, strict=True):
                multiply(x, blocks, y[:, first : first + count])
            return
        if blocks.dtype != out.dtype:
            blocks = blocks.to(out.dtype)
        for x, y in zip(tiles, out, strict=True):
            y[:, first : first + count] = torch.matmul(x, blocks).transpose(0, 1)
