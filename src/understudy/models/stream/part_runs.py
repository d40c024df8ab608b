"""Runs: neighbouring parts of a Linear that a device uses in one go. All that one needs but the bytes is made once, when a pass
first comes to it, so that a pass asks the device for few large pieces of work and the host looks nothing up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...codecs import Encoded
from ...devices import RowProduct
from ...kernels.pack import BLOCK
from .exact_linear import ExactLinear, Piece


@dataclass(frozen=True)
class Lying:
    """A part in a stretch of memory."""

    # where its bytes begin there
    start: int
    nbytes: int
    first_block: int
    blocks: int


class PartRun:
    """`parts` of `linear`, in their order, which lie in one stretch of memory. Where they need no decoding, their bytes follow one
    another; else there is room to decode all of them."""

    def __init__(self, linear: ExactLinear, parts: Sequence[Lying]) -> None:
        self.linear = linear
        self.parts = tuple(parts)
        self.first = parts[0].first_block
        self.count = sum(part.blocks for part in parts)
        self._room = linear.room(self.count)
        starts, counts = [part.start for part in parts], [part.blocks for part in parts]
        device = linear.device
        self._places = linear.codec.places(starts, counts, device.where) if device.own_memory else None
        self._substitute = linear.substitute(self.first, self.count)

    def blocks(self, data: Tensor) -> Tensor:
        """The weights [count, K, 64] from the bytes `data` of the stretch, valid until the next run's: all decode to one buffer."""
        linear, room = self.linear, self._room
        if room is None:
            start, end = self.parts[0].start, self.parts[-1].start + self.parts[-1].nbytes
            return data[start:end].view(linear.entry.dtype).view(self.count, linear.columns, BLOCK)
        if self._places is not None:
            whole = Encoded(data, self.count, linear.columns, linear.entry.dtype, self._substitute, self._places)
            return linear.device.decode(linear.codec, whole, room)
        for part in self.parts:
            piece = data[part.start : part.start + part.nbytes], part.first_block, part.blocks
            linear.decode(piece, room[part.first_block - self.first :][: part.blocks])
        return room


def lying_in(parts: Sequence[Piece]) -> tuple[Tensor, list[Lying]]:
    """The stretch of memory, in bytes, that `parts` lie in one behind the other, and where each is there."""
    first, last = parts[0][0], parts[-1][0]
    start = first.data_ptr()
    span = last.data_ptr() + last.nbytes - start
    whole = first.view(-1).view(torch.uint8).as_strided((span,), (1,))
    return whole, [Lying(data.data_ptr() - start, data.nbytes, block, count) for data, block, count in parts]


def runs_of(linear: ExactLinear, parts: Sequence[Lying]) -> list[PartRun]:
    """`parts` of `linear` in one stretch of memory, in as few runs as will do, evenly cut."""
    if linear.codec.in_place:
        return [PartRun(linear, run) for run in _joined(parts)]
    blocks, most = sum(part.blocks for part in parts), linear.most_blocks
    wanted = -(-blocks // -(-blocks // most))
    runs: list[list[Lying]] = [[]]
    held = 0
    for part in parts:
        full = held >= wanted or held + part.blocks > most
        if runs[-1] and (full or part.first_block != runs[-1][-1].first_block + runs[-1][-1].blocks):
            runs.append([])
            held = 0
        runs[-1].append(part)
        held += part.blocks
    return [PartRun(linear, run) for run in runs]


def _joined(parts: Sequence[Lying]) -> list[list[Lying]]:
    """Parts whose bytes are the weights themselves: those that follow one another as one."""
    runs: list[list[Lying]] = []
    end = block = -1
    for part in parts:
        if part.start == end and part.first_block == block:
            runs[-1].append(part)
        else:
            runs.append([part])
        end, block = part.start + part.nbytes, part.first_block + part.blocks
    return runs


def rows_times(multiply: RowProduct, tiles: Sequence[Tensor], out: Tensor, run: PartRun, blocks: Tensor) -> None:
    """`tiles` times the `blocks` of a run, into `out` [tiles, rows, all blocks, 64]."""
    for x, y in zip(tiles, out, strict=True):
        multiply(x, blocks, y[:, run.first : run.first + run.count])
