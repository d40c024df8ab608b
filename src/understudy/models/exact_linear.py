"""How the exact weights of one Linear multiply, whatever they are stored as. The plan never changes a bit of the product.

Where the device has a product for it, weights multiply as they lie or are rebuilt on the way, for just the rows there are.
Elsewhere a part is decoded first, and multiplies tiles of one fixed shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..codecs import FALLBACK, Codec, codec
from ..devices import Device, ExactProduct
from ..errors import UsageError
from ..kernels.exact_product import Operand
from ..kernels.pack import BLOCK
from ..quantizers import Quantizer
from ..weights.entries import LinearEntry

# parts that there is room for on a device to decode, before they multiply in one go
TOGETHER = 4
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
        self.columns = entry.shape[1]
        if refusal := device.refusal(self.codec):
            raise UsageError(refusal)

    def product(self, dtype: torch.dtype) -> ExactProduct | None:
        """What multiplies rows of `dtype` by parts that are not decoded first; None where there is nothing that does."""
        return self.device.exact_product(dtype, self.columns) if dtype == self.entry.dtype else None

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

        For parts stored in the source file it is valid only until the next call (see `one_by_one`)."""
        substitute = self._substitute(first, count)
        return self.codec.operand(data.view(-1), count, self.columns, substitute, self._room(count)), first

    def blocks(self, data: Tensor, first: int, count: int) -> Tensor:
        """The weights [count, K, 64] of these blocks, valid until the next call for any Linear: all share one buffer."""
        return self._decode((data, first, count), self._room(count))

    def _decode(self, part: Piece, room: Tensor | None) -> Tensor:
        """The weights of `part`, in `room` unless they are a view of its bytes."""
        data, first, count = part
        substitute = self._substitute(first, count)
        return self.device.decode(self.codec, data.view(-1), count, self.columns, self.entry.dtype, substitute, room)

    def _room(self, count: int) -> Tensor | None:
        """Where `count` blocks are decoded; None where decoding is a view of the data."""
        if self.codec.in_place:
            return None
        shape, dtype = (count, self.columns, BLOCK), self.entry.dtype
        return self.buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _substitute(self, first: int, count: int) -> Mapping[str, Tensor]:
        return self.quantizer.cut(self.tensors, first, count) if self.codec.needs_substitute else {}

    def multiply(self, parts: Sequence[Piece], tiles: Sequence[Tensor], out: Tensor) -> None:
        """Multiply `tiles` [rows, K] by decoded `parts`, into `out` [tiles, rows, all blocks, 64].

        For where `product` is None. A row's bits do not depend on the other rows: the device's product sees to that, or tiles have
        always the same shape and are multiplied one by one."""
        multiply = self.device.row_product()
        # Shapes stay the same with the parts, not with what happens to lie together.
        runs = self._runs(parts) if multiply is not None else ((self.blocks(*part), part[1]) for part in parts)
        for blocks, first in runs:
            for x, y in zip(tiles, out, strict=True):
                place = y[:, first : first + len(blocks)]
                if multiply is not None:
                    multiply(x, blocks, place)
                else:
                    place.copy_(torch.matmul(x, blocks.to(out.dtype)).transpose(0, 1))

    def _runs(self, parts: Sequence[Piece]) -> Iterator[tuple[Tensor, int]]:
        """The weights [nb, K, 64] of neighbours together, with their first block: as many as lie one after another, or as there is
        room to decode. They are valid until the next are asked for."""
        if self.codec.in_place:
            for piece in joined(parts):
                yield self.blocks(*piece), piece[1]
            return
        most = self.buffer.numel() // (self.columns * BLOCK * self.entry.dtype.itemsize)
        for run in neighbours(parts, most):
            begin = run[0][1]
            room = self._room(sum(count for _, _, count in run))
            assert room is not None, "what is decoded takes room"
            for part in run:
                self._decode(part, room[part[1] - begin :][: part[2]])
            yield room, begin


def neighbours(parts: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """`parts` in runs of at most `most` blocks that follow one another."""
    run: list[Piece] = []
    for part in parts:
        _, first, count = part
        if run and (first != run[-1][1] + run[-1][2] or first + count - run[0][1] > most):
            yield run
            run = []
        run.append(part)
    yield run


def joined(parts: Sequence[Piece]) -> Iterator[Piece]:
    """The same `parts`, whose bytes are the weights themselves: those that lie one after another as one."""
    number = 0
    while number < len(parts):
        data, first, count = parts[number]
        nbytes = data.numel()
        number += 1
        while number < len(parts):
            more, following, others = parts[number]
            behind = more.data_ptr() == data.data_ptr() + nbytes and following == first + count
            if not behind or more.untyped_storage().data_ptr() != data.untyped_storage().data_ptr():
                break
            nbytes += more.numel()
            count += others
            number += 1
        yield (data if nbytes == data.numel() else data.as_strided((nbytes,), (1,))), first, count
