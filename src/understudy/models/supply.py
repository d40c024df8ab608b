"""Where each part of the exact weights comes from: kept in fast memory for good, or brought by the ring when its turn comes.

Both ways end in the same product of the same blocks in the same order, so the plan never changes a bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tiers.ring import Ring

BLOCK_ROWS = 64


@dataclass(frozen=True)
class PartRef:
    """Part `number` of the model: blocks first_block..first_block+blocks of Linear `linear`, `nbytes` as stored."""

    number: int
    linear: int
    first_block: int
    blocks: int
    nbytes: int


Decode = Callable[[PartRef, Tensor], Tensor]


class Supply:
    """`decode(part, bytes)` gives the exact blocks [nb, K, 64]. `ring` streams, in order, the parts that `residents` lacks."""

    def __init__(
        self,
        parts: Sequence[PartRef],
        outputs: Sequence[int],
        decode: Decode,
        residents: Mapping[int, Tensor],
        ring: Ring | None,
    ):
        self.by_linear: list[list[PartRef]] = [[] for _ in outputs]
        for part in parts:
            self.by_linear[part.linear].append(part)
        self.outputs, self.decode, self.residents, self.ring = outputs, decode, residents, ring
        self.bytes_used = 0
        self.gemm_seconds = 0.0
        self.decode_seconds = 0.0

    def multiply(self, index: int, tiles: Sequence[Tensor]) -> list[Tensor]:
        """tiles: each [TILE, K] -> each [TILE, N]. The weights of Linear `index` are brought once for all of them."""
        blocks = -(-self.outputs[index] // BLOCK_ROWS)
        results = [x.new_empty(x.shape[0], blocks, BLOCK_ROWS) for x in tiles]
        for part in self.by_linear[index]:
            if part.number in self.residents:
                self._product(part, self.residents[part.number], tiles, results)
            else:
                assert self.ring is not None, f"part {part.number} is neither resident nor streamed"
                slot = self.ring.next()
                assert slot.index == part.number, (
                    f"the ring brought part {slot.index}, Linear {index} needs {part.number}"
                )
                try:
                    self.bytes_used += part.nbytes
                    self._product(part, slot.data, tiles, results)
                finally:
                    slot.release()
        return [y.view(y.shape[0], -1)[:, : self.outputs[index]] for y in results]

    def _product(self, part: PartRef, data: Tensor, tiles: Sequence[Tensor], results: list[Tensor]) -> None:
        start = time.perf_counter()
        blocks = self.decode(part, data)
        decoded = time.perf_counter()
        if blocks.dtype != tiles[0].dtype:
            blocks = blocks.to(tiles[0].dtype)
        for x, y in zip(tiles, results, strict=True):
            y[:, part.first_block : part.first_block + part.blocks] = torch.matmul(x, blocks).transpose(0, 1)
        self.decode_seconds += decoded - start
        self.gemm_seconds += time.perf_counter() - decoded

    def skip_head(self) -> None:
        """A pass in which nobody asks for logits: the last Linear's parts pass by unused, since the ring brings all in order."""
        for part in self.by_linear[-1]:
            if part.number not in self.residents:
                assert self.ring is not None
                slot = self.ring.next()
                assert slot.index == part.number, f"the ring brought part {slot.index}, the head has {part.number}"
                self.bytes_used += part.nbytes
                slot.release()

    def abandon(self) -> None:
        """A pass was left half way: the next one begins with the first part again."""
        if self.ring is not None:
            self.ring.rewind()
