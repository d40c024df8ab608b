"""How the exact weights of one Linear multiply, whatever they are stored as. The plan never changes a bit of the product.

Where the machine has the instructions (`kernels.exact_product`), bfloat16 weights multiply as they lie or are rebuilt on the way,
for just the rows there are. Elsewhere they are made whole first, and multiply tiles of one fixed shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..codecs import Codec, codec
from ..devices.accelerator import Accelerator
from ..kernels.exact_product import Operand, applies
from ..kernels.pack import BLOCK
from ..quantizers import Quantizer
from ..weights.entries import LinearEntry


class Exact:
    """`tensors` is the substitute (empty where the codec needs none); `buffer`: bytes in which a part is made whole.

    UsageError where `device` cannot make such weights whole."""

    def __init__(
        self,
        entry: LinearEntry,
        maker: Quantizer,
        tensors: Mapping[str, Tensor],
        buffer: Tensor,
        bare: bool,
        device: Accelerator | None = None,
    ):
        self.entry, self.maker, self.tensors, self.buffer = entry, maker, tensors, buffer
        self.codec: Codec = codec("raw" if bare else entry.codec)
        self.columns, self.device = entry.shape[1], device
        if device is not None:
            device.refuse(self.codec.name)

    def fused(self, dtype: torch.dtype) -> bool:
        """Whether rows of this dtype multiply without weights being made whole first."""
        return self.device is None and dtype == self.entry.dtype and applies(dtype, self.columns)

    @property
    def one_by_one(self) -> bool:
        """Whether one operand must be done with before the next is asked for."""
        return self.codec.linked

    def operand(self, data: Tensor, first: int, count: int) -> tuple[Operand, int]:
        """Blocks first to first + count - 1 from their bytes, as `kernels.exact_product.multiply` takes them; only if `fused`.

        Of a linked part it holds until the next call: `one_by_one`."""
        substitute = self._substitute(first, count)
        return self.codec.operand(data.view(-1), count, self.columns, substitute, self._room(count)), first

    def blocks(self, data: Tensor, first: int, count: int) -> Tensor:
        """The weights [count, K, 64] of these blocks; they hold until the next call, for any Linear."""
        decode = self.codec.decode if self.device is None else partial(self.device.decode, self.codec)
        substitute = self._substitute(first, count)
        return decode(data.view(-1), count, self.columns, self.entry.dtype, substitute, self._room(count))

    def _room(self, count: int) -> Tensor | None:
        """Where blocks are made whole; None for those that are as they lie."""
        if self.codec.in_place:
            return None
        shape, dtype = (count, self.columns, BLOCK), self.entry.dtype
        return self.buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _substitute(self, first: int, count: int) -> Mapping[str, Tensor]:
        return self.maker.cut(self.tensors, first, count) if self.codec.needs_substitute else {}

    def multiply_tiles(self, data: Tensor, first: int, count: int, tiles: Sequence[Tensor], out: Tensor) -> None:
        """Where not `fused`: tiles [TILE, K] one by one, out [tiles, TILE, all blocks, 64]."""
        blocks = self.blocks(data, first, count)
        if blocks.dtype != out.dtype:
            blocks = blocks.to(out.dtype)
        for x, y in zip(tiles, out, strict=True):
            y[:, first : first + count] = torch.matmul(x, blocks).transpose(0, 1)
