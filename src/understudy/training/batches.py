"""Pieces in batches of about as many tokens, in an order that the seed and the number of the epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..seeds import seeded
from .chains import PieceBatch
from .data import Pieces
from .dump import Dump

# So many batches' pieces are sorted by length together, so that those of a batch are about as long and little is padding.
SORTED = 16


@dataclass(frozen=True)
class Batches:
    """Batches of the pieces in `dump`, for a head that reads the hidden states at `taps`."""

    pieces: Pieces
    dump: Dump
    taps: tuple[int, ...]
    # Tokens of a batch, padding included; a longer piece is alone.
    batch_tokens: int
    seed: int
    device: str = "cpu"

    def epoch(self, number: int) -> list[list[int]]:
        """The pieces of each batch of an epoch, all of those to learn from."""
        generator = seeded(self.seed * 1_000_003 + number)
        learn = self.pieces.chosen(held_out=False)
        order = [learn[place] for place in torch.randperm(len(learn), generator=generator).tolist()]
        batches: list[list[int]] = []
        pool: list[int] = []
        for piece in order:
            pool.append(piece)
            if sum(map(self.pieces.length, pool)) >= SORTED * self.batch_tokens:
                batches += self.grouped(pool)
                pool = []
        batches += self.grouped(pool)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def measured(self) -> list[list[int]]:
        """The pieces of each batch of those kept apart."""
        return list(self.grouped(self.pieces.chosen(held_out=True)))

    def grouped(self, pieces: Sequence[int]) -> Iterator[list[int]]:
        """`pieces` by length, in batches."""
        batch: list[int] = []
        for piece in sorted(pieces, key=self.pieces.length):
            if batch and self.pieces.length(piece) * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(piece)
        if batch:
            yield batch

    def read(self, batch: Sequence[int]) -> PieceBatch:
        """The batch of these pieces, in float32. Raises StoreError where their hidden states cannot be read."""
        longest = max(map(self.pieces.length, batch))
        size = self.dump.size
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        counted = torch.zeros(len(batch), longest, dtype=torch.bool)
        states = torch.zeros(len(batch), longest, len(size.taps), size.hidden_size)
        for row, piece in enumerate(batch):
            length = self.pieces.length(piece)
            tokens[row, :length] = self.pieces.tokens[self.pieces.part(piece)]
            counted[row, :length] = self.pieces.counted[self.pieces.part(piece)]
            states[row, :length] = self.dump.read(self.pieces.keys[piece])
        places = [size.taps.index(tap) for tap in self.taps]
        hidden, features = states[:, :, places], states[:, :, size.taps.index(-1)]
        return PieceBatch(*(part.to(self.device) for part in (tokens, counted, hidden, features)))
