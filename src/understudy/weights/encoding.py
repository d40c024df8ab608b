"""One weight of a checkpoint as substitute and residual: each part is read, checked and encoded on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs import FALLBACK, Codec, codec
from ..errors import CheckpointError
from ..kernels.pack import BLOCK, block, blocks_of, unusable_value
from ..quantizers import Quantizer, Tensors
from ..quantizers.inputs import Inputs
from .checkpoint import Checkpoint, TensorInfo
from .entries import Stored
from .files import checksum
from .layout import LinearSpec

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Piece:
    """A part of a weight on its way to the disk."""

    # The number of its first block of 64 rows, and how many blocks it has.
    first_block: int
    blocks: int
    # The weight's rows, [n, K].
    rows: Tensor
    # The substitute of these rows.
    substitute: Tensors
    # The codec's bytes; the rows themselves for a linked codec; None where the substitute is the weight itself.
    residual: Tensor | None


@dataclass(frozen=True)
class Encoding:
    """How one weight is encoded. Calls for different parts are independent, so threads may make them."""

    checkpoint: Checkpoint
    spec: LinearSpec
    quantizer: Quantizer
    codec: Codec
    # What the weight will be multiplied with, once that is known; None: nothing will be.
    inputs: Future[Inputs | None] | None = None

    @property
    def info(self) -> TensorInfo:
        """The source's tensor."""
        return self.checkpoint.info(self.spec.weight)

    def piece(self, first_block: int, blocks: int) -> Piece:
        """The part of `blocks` blocks from `first_block` on. Raises CheckpointError for what is no weight."""
        start = first_block * BLOCK
        rows = self.checkpoint.weight_rows(self.spec, start, min(start + blocks * BLOCK, self.spec.shape[0]))
        refuse_unusable(self.info, rows)
        inputs = None if self.inputs is None else self.inputs.result()
        substitute = self.quantizer.quantize(rows, inputs)
        return Piece(first_block, blocks, rows, substitute, self._residual(rows, substitute))

    def _residual(self, rows: Tensor, substitute: Tensors) -> Tensor | None:
        if self.quantizer.name == "exact":
            return None
        return rows if self.codec.linked else self.codec.encode(block(rows), substitute)

    def in_source(self, piece: Piece) -> Stored:
        """Where the rows of a piece lie in the source file."""
        nbytes = piece.rows.nbytes
        offset = self.info.offset + piece.first_block * BLOCK * self.info.shape[1] * self.info.dtype.itemsize
        return Stored(str(self.info.file.absolute()), offset, nbytes, torch.uint8, (nbytes,), checksum([piece.rows]))


def check_weight(info: TensorInfo, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the tensor is a weight of floats in the shape that the model wants."""
    if info.dtype not in FLOATS:
        wide = info.dtype == torch.float64
        advice = "load the model in float32 and save it" if wide else "choose a checkpoint that is not quantised"
        raise CheckpointError(f"{info.file}: {info.name} is {info.kind}, where bfloat16, float16 or float32 is needed: {advice}.")
    if info.shape != shape:
        raise CheckpointError(f"{info.file}: {info.name} is {list(info.shape)}, where the config asks for {list(shape)}.")


def refuse_unusable(info: TensorInfo, piece: Tensor) -> None:
    """Raise CheckpointError, naming the tensor, if `piece` of it holds NaN or an infinity: no text can be computed with it."""
    if value := unusable_value(piece):
        raise CheckpointError(f"{info.file}: tensor {info.name!r} holds {value}: the checkpoint is broken, get it again.")


def codec_for(spec: LinearSpec, wanted: str) -> Codec:
    """The codec named `wanted`, or one that copies where that links to rows which a source does not have as such."""
    chosen = codec(wanted)
    return codec(FALLBACK) if chosen.linked and spec.turned else chosen


def whole_bytes(spec: LinearSpec, dtype: torch.dtype) -> int:
    """Bytes of all blocks of a weight, the last one padded."""
    return blocks_of(spec.shape[0]) * BLOCK * spec.shape[1] * dtype.itemsize


def in_order(pool: ThreadPoolExecutor, ahead: int, work: Iterable[tuple[Encoding, int, int]]) -> Iterator[Piece]:
    """The piece of each (encoding, first block, number of blocks), in order. The pool makes up to `ahead` of them at a time."""
    pending: deque[Future[Piece]] = deque()
    for encoding, first_block, blocks in work:
        pending.append(pool.submit(encoding.piece, first_block, blocks))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
