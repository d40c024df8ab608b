"""Calibration: the mean square of each input of each Linear while the exact model reads a text.

One pass of the target view over the checkpoint itself, layer by layer: each weight is read once, nothing is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..devices.processor import Processor
from ..kernels.pack import BLOCK
from ..tree import Nodes, TokenTree
from ..weights.checkpoint import Checkpoint
from ..weights.entries import Stored, part_blocks
from ..weights.layout import ModelLayout
from .embedding import EmbeddingRows, Lookup, lookups
from .footprint import EMBEDDING_ROOM
from .target import TILE, Target
from .unprepared import unprepared

MOST_TOKENS = 512

Progress = Callable[[float, float], None]
Report = Callable[[str, float, float], None]


def moments_of_text(
    checkpoint: Checkpoint, layout: ModelLayout, config: Any, tokenizer: Any, text: str, report: Report | None
) -> list[Tensor]:
    """`second_moments` of a text, reported as a stage of preparing."""
    progress = None if report is None else partial(report, "calibrating")
    return second_moments(checkpoint, layout, config, tokenizer(text)["input_ids"], progress)


class Reading:
    """Multiplies by the checkpoint's weights as they are read, and adds up the squares of what goes in."""

    def __init__(self, checkpoint: Checkpoint, layout: ModelLayout, count: int, progress: Progress | None):
        self.checkpoint = checkpoint
        self.layout = layout
        self.count = count
        self.progress = progress
        self.squares = [torch.zeros(spec.shape[1], dtype=torch.float64) for spec in layout.linears]

    def __call__(self, index: int, tiles: Sequence[Tensor], *_: int) -> list[Tensor]:
        """tiles: each [TILE, K] -> each [TILE, N]; the last one is padded."""
        spec = self.layout.linears[index]
        x = torch.cat(list(tiles))
        self.squares[index] += x[: self.count].double().square().sum(0)
        y = x.new_zeros(len(x), spec.shape[0])
        # The head is skipped: nobody asks for logits.
        if index < len(self.layout.linears) - 1:
            for first, blocks in part_blocks(spec.shape, self.checkpoint.info(spec.weight).dtype):
                rows = first * BLOCK, min((first + blocks) * BLOCK, spec.shape[0])
                y[:, slice(*rows)] = x @ self.checkpoint.read_rows(spec.weight, *rows).to(x.dtype).T
        if self.progress is not None:
            self.progress(index + 1, len(self.layout.linears))
        return list(torch.split(y, TILE))


def _rows(checkpoint: Checkpoint, module: nn.Module, name: str) -> EmbeddingRows:
    info = checkpoint.info(name)
    table = Stored(info.file.name, info.offset, info.nbytes, info.dtype, info.shape, "")
    return EmbeddingRows(module, info.file, table, EMBEDDING_ROOM)


def second_moments(
    checkpoint: Checkpoint, layout: ModelLayout, config: Any, tokens: Sequence[int], progress: Progress | None = None
) -> list[Tensor]:
    """For each Linear, in the order of a pass: the mean square of each of its inputs, [K], over the first `MOST_TOKENS` of
    `tokens`. Raises CheckpointError for what cannot be read."""
    tokens = tokens[:MOST_TOKENS]
    dtype = checkpoint.info(layout.linears[0].weight).dtype
    model = unprepared(config, dtype, layout, checkpoint.read, (1, len(tokens)))
    modules = lookups(model.module, layout)
    rows = Lookup(_rows(checkpoint, *each) for each in zip(modules, layout.looked_up, strict=True))
    reading = Reading(checkpoint, layout, len(tokens), progress)
    try:
        with torch.inference_mode():
            Target(model.module, model.base, model.current, model.cache, rows, reading, Processor(threads=1))(
                Nodes.of(TokenTree.chain(tokens), 0, 0), torch.arange(len(tokens)), lambda logits, first: logits[:0]
            )
    finally:
        rows.close()
    return [(squares / len(tokens)).float() for squares in reading.squares]
