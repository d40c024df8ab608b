"""Calibration: the second moments of each Linear's inputs while the exact model reads a text.

One pass of the target view over the checkpoint itself, layer by layer: each weight is read once, nothing is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices.processor import Processor
from ..kernels.amx_dot import has_amx
from ..kernels.bfdot import has_bfdot
from ..kernels.pack import BLOCK
from ..quantizers.inputs import Inputs
from ..tree import Nodes, TokenTree
from ..weights.checkpoint import Checkpoint
from ..weights.entries import Stored, part_blocks
from ..weights.layout import LinearSpec, ModelLayout
from ..weights.measuring import Note
from .embedding import EMBEDDING_ROOM, EmbeddingRows, Lookup, sorted_tables
from .hashed_rows import FileRows
from .mixtures.routed import Routed, Rows
from .target import Target
from .unprepared import unprepared

MOST_TOKENS = 512

Progress = Callable[[float, float], None]
Report = Callable[[str, float, float], None]


def moments_of_text(
    checkpoint: Checkpoint, layout: ModelLayout, config: Any, tokenizer: Any, text: str, report: Report | None, note: Note
) -> None:
    """`second_moments` of a text, reported as a stage of preparing."""
    progress = None if report is None else partial(report, "calibrating")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS
    second_moments(checkpoint, layout, config, tokenizer(text)["input_ids"][:longest], note, progress)


class Reading:
    """Multiplies by the checkpoint's weights as they are read, and notes the moments of what goes in."""

    def __init__(self, checkpoint: Checkpoint, layout: ModelLayout, count: int, note: Note, progress: Progress | None):
        self.checkpoint = checkpoint
        self.layout = layout
        self.count = count
        self.progress = progress
        self.note = note
        self.done = 0
        # The last inputs that there were, and their moments: queries, keys and values have the same.
        self.last: Tensor | None = None
        self.moments: Inputs | None = None
        self.room = torch.empty(0)

    def __call__(self, index: int, tiles: Sequence[Rows], *_: int) -> list[Tensor]:
        """tiles: one, [rows, K] -> [rows, N], of which the last rows may be padding, or routed rows.

        The inputs of all experts of a layer are taken together: a text gives each of them few."""
        spec = self.layout.linears[index]
        (x,) = tiles
        assert index == self.done, "Linears run in their order, once"
        self.done += 1
        self.note(self._moments(x.rows if isinstance(x, Routed) else x[: self.count]))
        if isinstance(x, Routed):
            y = self._by_experts(spec, x, self.checkpoint.weight_dtype(spec))
        else:
            y = x.new_zeros(len(x), spec.shape[0])
            # The head is skipped: nobody asks for logits.
            if index < len(self.layout.linears) - 1:
                self._times(spec, (0, spec.shape[0]), self.checkpoint.weight_dtype(spec), x, y)
        if self.progress is not None:
            self.progress(index + 1, len(self.layout.linears))
        return [y]

    def _by_experts(self, spec: LinearSpec, x: Routed, dtype: torch.dtype) -> Tensor:
        """Routed rows times the matrices of their experts, which are stored in `dtype`."""
        y = x.rows.new_zeros(len(x.rows), spec.outputs)
        for expert, rows in x.groups(spec.experts):
            matrix = expert * spec.outputs, (expert + 1) * spec.outputs
            self._times(spec, matrix, dtype, x.rows[rows], y[rows])
        return y

    def _times(self, spec: LinearSpec, matrix: tuple[int, int], dtype: torch.dtype, x: Tensor, y: Tensor) -> None:
        """y [rows, stop - start] = x times rows start to stop - 1 of a weight that is stored in `dtype`, part by part; `matrix`:
        start and stop."""
        own, (start, stop) = x.to(_product_type(x.dtype)), matrix
        for first, blocks in part_blocks((stop - start, spec.shape[1]), dtype, spec.unit):
            rows = first * BLOCK, min((first + blocks) * BLOCK, stop - start)
            y[:, slice(*rows)] = own @ self._weights(spec, start + rows[0], start + rows[1], own.dtype).T

    def _weights(self, spec: LinearSpec, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows start to stop - 1 of a weight, of type `dtype`, until the next are asked for."""
        rows = self.checkpoint.weight_rows(spec, start, stop)
        if rows.dtype == dtype:
            return rows
        # The same memory for all: the system takes as long to hand out new memory as the conversion takes.
        if self.room.dtype != dtype or self.room.numel() < rows.numel():
            self.room = torch.empty(rows.numel(), dtype=dtype)
        return self.room[: rows.numel()].view(rows.shape).copy_(rows)

    def _moments(self, x: Tensor) -> Inputs | None:
        if self.last is None or not torch.equal(self.last, x):
            self.last, self.moments = x, Inputs.of(x)
        return self.moments


def _product_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which torch multiplies numbers of `dtype` fast: without instructions for bfloat16 it multiplies them eight times
    as slowly as float32."""
    return dtype if dtype == torch.bfloat16 and (has_bfdot() or has_amx()) else torch.float32


def _place(checkpoint: Checkpoint, name: str) -> tuple[Path, Stored]:
    """Where a table lies: its file, and its place there."""
    info = checkpoint.info(name)
    return info.file, Stored(info.file.name, info.offset, info.nbytes, info.dtype, info.shape, "")


def second_moments(
    checkpoint: Checkpoint, layout: ModelLayout, config: Any, tokens: Sequence[int], note: Note, progress: Progress | None = None
) -> None:
    """Give `note`, for each Linear in the order of a pass, the second moments of its inputs over the first `MOST_TOKENS` tokens.

    Raises CheckpointError for what cannot be read."""
    tokens = tokens[:MOST_TOKENS]
    dtype = checkpoint.info(layout.linears[0].weight).dtype
    model = unprepared(config, dtype, layout, checkpoint.read, (1, len(tokens)))
    places = (_place(checkpoint, name) for name in layout.looked_up)
    by_token, by_hash = sorted_tables(model.module, layout, places)
    tables = (EmbeddingRows(module, *place, EMBEDDING_ROOM) for module, place in by_token)
    rows = Lookup(tables, {module: FileRows(pieces, EMBEDDING_ROOM) for module, pieces in by_hash.items()})
    reading = Reading(checkpoint, layout, len(tokens), note, progress)
    processor = Processor()
    try:
        with torch.inference_mode():
            views = model.current, model.cache, rows, reading
            # One forward for all tokens, on all processors: nothing asks for the bits that a tile would have.
            Target(model.module, model.base, *views, processor, whole=True)(
                Nodes.of(TokenTree.chain(tokens), 0, 0), torch.arange(len(tokens)), lambda logits, first: logits[:0]
            )
    finally:
        rows.close()
        processor.close()
