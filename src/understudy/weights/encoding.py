"""One weight of a checkpoint as substitute and residual: each part is read, checked and encoded on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs import FALLBACK, OF_FORMS, OTHERWISE, Codec, codec, copying
from ..errors import CheckpointError
from ..kernels.eighths_coding import Factors
from ..kernels.pack import BLOCK, block, blocks_of, unusable_value
from ..quantizers import Quantizer, Tensors, fitting
from ..quantizers.inputs import Inputs
from ..quantizers.mixed import foretold
from .checkpoint import Checkpoint, TensorInfo
from .entries import Stored, part_blocks
from .files import checksum
from .layout import LinearSpec, ModelLayout, same_rows
from .shards import one_type

WHOLE = (torch.int64, torch.int32)
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
        """The source's tensor; the first of several, which are of one type."""
        return self.checkpoint.info(self.spec.weight)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """The first block of each part, and how many it has."""
        return part_blocks(self.spec.shape, self.info.dtype, self.spec.unit)

    def piece(self, first_block: int, blocks: int) -> Piece:
        """The part of `blocks` blocks from `first_block` on. Raises CheckpointError for what is no weight."""
        start = first_block * BLOCK
        rows = self.checkpoint.weight_rows(self.spec, start, min(start + blocks * BLOCK, self.spec.shape[0]))
        refuse_unusable(self._tensor_of(start), rows)
        inputs = None if self.inputs is None else self.inputs.result()
        substitute = self.quantizer.quantize(rows, inputs)
        return Piece(first_block, blocks, rows, substitute, self._residual(rows, substitute, start))

    def _tensor_of(self, row: int) -> TensorInfo:
        """The source's tensor that has this row of the weight."""
        runs = self.spec.runs
        return self.checkpoint.info(runs[row * len(runs) // self.spec.shape[0]][0])

    def _residual(self, rows: Tensor, substitute: Tensors, start: int) -> Tensor | None:
        if self.quantizer.name == "exact":
            return None
        if self.codec.linked:
            return rows
        if not self.codec.form:
            return self.codec.encode(block(rows), substitute)
        factors = Factors.of_rows(*self.checkpoint.weight_factors(self.spec, start, start + len(rows)))
        return self.codec.encode(block(rows), substitute, factors)

    def in_source(self, piece: Piece) -> Stored:
        """Where the rows of a piece lie in the source file."""
        nbytes, start = piece.rows.nbytes, piece.first_block * BLOCK
        ((info, offset, _),) = self.checkpoint.places(self.spec, start, start + len(piece.rows))
        return Stored(str(info.file.absolute()), offset, nbytes, torch.uint8, (nbytes,), checksum([piece.rows]))


def check_weight(info: TensorInfo, shape: tuple[int, ...], *, whole: bool = False) -> None:
    """Raise CheckpointError unless the tensor is of floats, or of `whole` numbers, and in the shape that the model wants."""
    if info.packed is not None and info.packed.fault:
        raise CheckpointError(f"{info.file}: {info.packed.codes.name} {info.packed.fault}.")
    if whole and info.dtype not in WHOLE:
        raise CheckpointError(f"{info.file}: {info.name} is {info.kind}, where whole numbers are needed: the checkpoint is broken.")
    if not whole and info.dtype not in FLOATS:
        wide = info.dtype == torch.float64
        advice = "load the model in float32 and save it" if wide else "choose a checkpoint that is not quantised"
        raise CheckpointError(f"{info.file}: {info.name} is {info.kind}, where bfloat16, float16 or float32 is needed: {advice}.")
    if not same_rows(info.shape, shape):
        raise CheckpointError(f"{info.file}: {info.name} is {list(info.shape)}, where the config asks for {list(shape)}.")


def check_linear(spec: LinearSpec, infos: Sequence[TensorInfo]) -> None:
    """Raise CheckpointError unless `infos`, the tensors of a weight in their order, are what the model wants, and can be stored."""
    for info in infos:
        check_weight(info, spec.stored_shape)
    one_type(infos)
    quantised = [info.packed for info in infos if info.packed is not None]
    if quantised and (spec.turned or (spec.in_turn and any(packed.order for packed in quantised))):
        raise CheckpointError(f"{infos[0].file}: {infos[0].name} is stored transposed and quantised, which is not supported yet.")
    if spec.experts and spec.unit % BLOCK:
        raise CheckpointError(
            f"{infos[0].file}: each matrix of {spec.module} has {spec.unit} rows, where experts need a multiple of {BLOCK}:"
            " such a model cannot be run yet."
        )


def check_linears(layout: ModelLayout, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError unless all weights of `layout` that are among `tensors` can be stored."""
    for spec in layout.linears:
        check_linear(spec, [tensors[name] for name in spec.tensors])


def refuse_unusable(info: TensorInfo, piece: Tensor) -> None:
    """Raise CheckpointError, naming the tensor, if `piece` of it holds NaN or an infinity: no text can be computed with it."""
    if value := unusable_value(piece):
        raise CheckpointError(f"{info.file}: tensor {info.name!r} holds {value}: the checkpoint is broken, get it again.")


def codec_for(spec: LinearSpec, wanted: str, infos: Iterable[TensorInfo]) -> Codec:
    """The codec of a weight that is made of the tensors `infos`: that of the form in which it is published, if there is one; else
    the one named `wanted`; where that is for weights of another form, the one for theirs; and another where that links to rows
    which a source does not have as such."""
    chosen = codec(wanted)
    forms = {info.form for info in infos}
    if len(forms) == 1 and (form := next(iter(forms))) in OF_FORMS:
        return codec(form)
    if chosen.form and forms != {chosen.form}:
        theirs = (each for each in map(codec, copying()) if each.form and forms == {each.form})
        return next(theirs, codec(OTHERWISE))
    return codec(FALLBACK) if chosen.linked and spec.turned else chosen


def stored_by(checkpoint: Checkpoint, spec: LinearSpec, wanted: str, quantizer: Quantizer) -> Codec:
    """`codec_for` of a weight beside this copy, or the one that copies where that cannot store it."""
    chosen = codec_for(spec, wanted, map(checkpoint.info, spec.tensors))
    return chosen if chosen.applies(checkpoint.info(spec.weight).dtype, quantizer.name) else codec(FALLBACK)


def said_stored(checkpoint: Checkpoint, layout: ModelLayout, wanted: str, quantizer: str) -> str:
    """By what the weights of `layout` are stored, in one line, where none of them is by the codec that is `wanted`; else empty."""
    own = zip(layout.linears, foretold(quantizer, [spec.shape for spec in layout.linears]), strict=True)
    used = {stored_by(checkpoint, spec, wanted, fitting(name, *spec.shape)).name for spec, name in own}
    return "" if wanted in used else f"No weight of this model is one for codec {wanted}: stored by {' and '.join(sorted(used))}"


def form_among(layout: ModelLayout, tensors: Mapping[str, TensorInfo]) -> str:
    """The form of published weights for which a codec may be chosen, where some Linear of the model has it; of two, that of more
    bytes. Else empty."""
    forms = {form: 0 for each in copying() if (form := codec(each).form)}
    for info in (tensors[name] for spec in layout.linears for name in spec.tensors):
        if info.form in forms:
            forms[info.form] += info.nbytes
    return max(forms, key=forms.__getitem__) if any(forms.values()) else ""


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
