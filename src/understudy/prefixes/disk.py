"""Prefixes of texts, from the KV cache to files and back."""

from __future__ import annotations

import hashlib
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path

from ..cache import Cache
from ..sequence import TokenSequence
from . import BLOCK, LEAST
from .files import PrefixFiles
from .writer import PrefixWriter, size_of

TOKENS, POINT = ".tokens", ".point"


class TextBlocks:
    """The blocks of one text, by name."""

    def __init__(self, identity: str):
        self.names: list[str] = []
        # How many of them were handed over to be written, or are there already.
        self.kept = 0
        # Ends of blocks, in tokens, whose points were handed over or are gone.
        self.points: set[int] = set()
        self._identity = identity.encode()

    def of(self, tokens: Sequence[int]) -> list[str]:
        """The names of all whole blocks of `tokens`, which begin with what was given before."""
        while (start := len(self.names) * BLOCK) + BLOCK <= len(tokens):
            before = self.names[-1].encode() if self.names else self._identity
            block = array("q", tokens[start : start + BLOCK]).tobytes()
            self.names.append(hashlib.sha256(before + block).hexdigest()[:32])
        return self.names[: len(tokens) // BLOCK]


class DiskPrefixes:
    """Gives rows of `cache` the beginnings of texts that `files` hold, and has `writer` keep those of prompts that were read. What
    was added, caches that a drafter has of the same texts, goes with it.

    `identity`: what bits depend on beside the text; `skipped`: tokens at the beginning of a text without a slot in `cache`."""

    def __init__(self, files: PrefixFiles, writer: PrefixWriter, cache: Cache, identity: str = "", skipped: int = 0):
        self.files = files
        self.writer = writer
        self.cache = cache
        self.identity = identity or files.identity
        self.skipped = skipped
        self.beside: list[DiskPrefixes] = []
        # Files that are there, or will be.
        self._known: set[str] = set()
        writer.lost = self._forget
        self._blocks: weakref.WeakKeyDictionary[TokenSequence, TextBlocks] = weakref.WeakKeyDictionary()

    def add(self, cache: Cache, identity: str, skipped: int) -> None:
        """Keep what `cache` holds of texts too, whose bits depend on what `identity` stands for besides."""
        lost = self.writer.lost
        self.beside.append(DiskPrefixes(self.files, self.writer, cache, f"{self.identity} {identity}", skipped))
        self.writer.lost = lost

    def _forget(self, name: str) -> None:
        """A file is gone."""
        self._known.discard(name)
        for other in self.beside:
            other._known.discard(name)

    @classmethod
    def open(cls, directory: Path, limit: int, identity: str, cache: Cache) -> DiskPrefixes:
        """Prefixes of texts in the rows of `cache`, in `directory`, at most `limit` bytes."""
        files = PrefixFiles(directory, limit, identity)
        return cls(files, PrefixWriter(files), cache)

    def load(self, sequence: TokenSequence) -> int:
        """Let the row of `sequence` hold as much of its text as there is on disk, here and in what was added. Returns the tokens
        that this added here.

        Where a layer cannot go on from the end of what is there, and this text may not be the last to share it, reading is to
        pause there (`sequence.pause`), so that it can be kept."""
        added = self._load(sequence, sequence.to_share)
        if added:
            for other in self.beside:
                other._load(sequence, sequence.to_share[: self.cache.lengths[sequence.row] + other.skipped])
        return added

    def _load(self, sequence: TokenSequence, text: Sequence[int]) -> int:
        row = sequence.row
        held = self.cache.lengths[row]
        names = self._of(sequence).of(text[self.skipped :])
        known = next((i for i, name in enumerate(names) if not self._there(name + TOKENS)), len(names))
        least = held // BLOCK
        for end in range(known, least, -1):
            if self.cache.needs_points and not self._there(names[end - 1] + POINT):
                continue
            reached = self._read(row, names[:end], held)
            if reached > held:
                self.writer.touch([name + TOKENS for name in names[: reached // BLOCK]])
                least = reached // BLOCK
                break
        if not self.skipped and self.cache.needs_points and least < known < len(sequence.tokens) // BLOCK:
            sequence.pause = known * BLOCK
        return self.cache.lengths[row] - held

    def keep(self, sequence: TokenSequence) -> None:
        """Hand over the blocks of the prompt of `sequence` that its row holds and no file does, as many as there is room for."""
        if self.writer.fault or sequence.prompt_length < LEAST:
            return
        for each in (self, *self.beside):
            each._keep(sequence)

    def _keep(self, sequence: TokenSequence) -> None:
        length = min(self.cache.lengths[sequence.row], sequence.prompt_length - self.skipped)
        blocks = self._of(sequence)
        names = blocks.of(sequence.tokens[self.skipped :][:length])
        while blocks.kept < len(names):
            if not self._keep_block(sequence.row, blocks.kept, names[blocks.kept]):
                return
            blocks.kept += 1
        end = len(names) * BLOCK
        last = length + self.skipped in (sequence.prompt_length, sequence.pause)
        if last and names and end not in blocks.points and self._keep_point(sequence.row, end, names[-1]):
            blocks.points.add(end)
            self.writer.touch([name + TOKENS for name in names])

    def close(self) -> None:
        """Write what was handed over, and end."""
        self.writer.close()

    def _of(self, sequence: TokenSequence) -> TextBlocks:
        return self._blocks.setdefault(sequence, TextBlocks(f"{self.identity}{sequence.tokens[: self.skipped] or ''}"))

    def _there(self, name: str) -> bool:
        if name not in self._known and self.files.has(name):
            self._known.add(name)
        return name in self._known

    def _read(self, row: int, names: Sequence[str], held: int) -> int:
        """Put what files hold of blocks into `row` above its `held` tokens. Returns the length reached."""
        point = None
        if self.cache.needs_points:
            point = self.files.read(names[-1] + POINT)
            if point is None:
                self._known.discard(names[-1] + POINT)
                return held
        for index in range(held // BLOCK, len(names)):
            tensors = self.files.read(names[index] + TOKENS)
            if tensors is None:
                self._known.discard(names[index] + TOKENS)
                if point is not None or index * BLOCK <= held:
                    return held
                self.cache.resume(row, index * BLOCK, {})
                return index * BLOCK
            self.cache.put(row, index * BLOCK, tensors, held)
        self.cache.resume(row, len(names) * BLOCK, point or {})
        return len(names) * BLOCK

    def _keep_block(self, row: int, index: int, name: str) -> bool:
        """Whether block `index` of `row` is kept, or was taken to be."""
        if self._there(name + TOKENS):
            return True
        if not self.writer.takes(self.cache.block_bytes(BLOCK)):
            return False
        self._known.add(name + TOKENS)
        self.writer.write(name + TOKENS, self.cache.taken(row, index * BLOCK, (index + 1) * BLOCK))
        return True

    def _keep_point(self, row: int, length: int, name: str) -> bool:
        """Whether there is nothing more to do for the point after `length` tokens of `row`."""
        if not self.cache.needs_points or self._there(name + POINT):
            return True
        if self.cache.reach(row, length) < length:
            return True
        tensors = self.cache.point(row, length)
        if not self.writer.takes(size_of(tensors)):
            return False
        self._known.add(name + POINT)
        self.writer.write(name + POINT, tensors)
        return True
