"""Texts to learn from: files of text or of conversations, as tokens, with the marks of those that a head must learn to guess."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..chat_template import encode
from ..errors import UsageError
from .conversation import Unusable, conversation_of, learned

# Of all texts, the share that is kept apart to measure with.
HELD_OUT = 0.05
# Tokens of the shortest piece that has something to guess: the head reads a token and the one before, and guesses the next.
SHORTEST = 3


# A text: its tokens, which of them are to be guessed, and whether it is kept apart to measure with.
Text = tuple[list[int], list[bool], bool]


@dataclass(frozen=True)
class Pieces:
    """Texts cut to pieces that the target reads as one. `edges[i]` to `edges[i + 1]` are the places of piece i in `tokens`."""

    # [all tokens] int64.
    tokens: Tensor
    # [all tokens] bool: those that a head must learn to guess.
    counted: Tensor
    edges: tuple[int, ...]
    # By piece: is it kept apart to measure with?
    held_out: tuple[bool, ...]

    @classmethod
    def joined(cls, texts: Sequence[Text]) -> Pieces:
        """Each of `texts` as a piece."""
        flat = torch.tensor([token for tokens, _, _ in texts for token in tokens])
        counted = torch.tensor([mark for _, marks, _ in texts for mark in marks])
        edges = (0, *accumulate(len(tokens) for tokens, _, _ in texts))
        return cls(flat, counted, edges, tuple(apart for _, _, apart in texts))

    def __len__(self) -> int:
        return len(self.held_out)

    def part(self, piece: int) -> slice:
        """The places of a piece in all tokens."""
        return slice(self.edges[piece], self.edges[piece + 1])

    def length(self, piece: int) -> int:
        return self.edges[piece + 1] - self.edges[piece]

    def chosen(self, held_out: bool) -> list[int]:
        """The numbers of the pieces that are kept apart, or of those that are not."""
        return [piece for piece, apart in enumerate(self.held_out) if apart == held_out]

    def counted_tokens(self, held_out: bool) -> int:
        """How many tokens of those pieces a head learns to guess."""
        return sum(int(self.counted[self.part(piece)].sum()) for piece in self.chosen(held_out))

    @cached_property
    def keys(self) -> list[str]:
        """By piece: a digest of its tokens."""
        return [xxhash.xxh3_128_hexdigest(self.tokens[self.part(piece)].numpy().tobytes()) for piece in range(len(self))]

    @property
    def digest(self) -> str:
        """Stands for all of it."""
        digest = xxhash.xxh3_128("".join(self.keys).encode())
        for tensor in (self.counted, torch.tensor(self.held_out)):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def limited(self, learn: int, measure: int) -> Pieces:
        """About `learn` tokens to learn from and `measure` to measure with, at least a piece of each; 0: all. A choice of fewer
        tokens is part of one of more, and does not depend on the order of the texts."""
        order = sorted(range(len(self)), key=lambda piece: self.keys[piece])
        left = {False: learn or self.edges[-1], True: measure or self.edges[-1]}
        chosen = []
        for piece in order:
            apart = self.held_out[piece]
            if left[apart] > 0:
                left[apart] -= int(self.counted[self.part(piece)].sum())
                chosen.append(piece)
        return self.of(sorted(chosen))

    def of(self, chosen: Sequence[int]) -> Pieces:
        """Some of the pieces."""
        lengths = [self.length(piece) for piece in chosen]
        tokens = torch.cat([self.tokens[self.part(piece)] for piece in chosen])
        counted = torch.cat([self.counted[self.part(piece)] for piece in chosen])
        return Pieces(tokens, counted, (0, *accumulate(lengths)), tuple(self.held_out[piece] for piece in chosen))

    def frequent(self, count: int) -> Tensor:
        """[count] int64, ascending: the tokens that are guessed most often in the pieces to learn from. Of equally frequent ones
        the lowest; where there are fewer, tokens that are never guessed fill it up."""
        among = torch.cat([self.tokens[self.part(piece)][self.counted[self.part(piece)]] for piece in self.chosen(False)])
        times = torch.bincount(among, minlength=count)
        return times.sort(descending=True, stable=True).indices[:count].sort().values


@dataclass
class TextReader:
    """Reads files into texts of tokens."""

    tokenizer: Any
    # Tokens of the longest piece.
    longest: int
    texts: list[Text] = field(default_factory=list)
    # What was passed over, a line each.
    notes: list[str] = field(default_factory=list)

    def read(self, paths: Sequence[Path]) -> Pieces:
        """All texts of the files `paths`. Raises UsageError for a file that cannot be read, and where none has a usable text."""
        for path in paths:
            if path.suffix == ".jsonl":
                self._conversations(path)
            else:
                text = content(path)
                self._add(text, encode(self.tokenizer, text, verbose=False))
        if not self.texts:
            why = f" {self.notes[0]}" if self.notes else f" Each has fewer than {SHORTEST} tokens."
            raise UsageError(f"There is no usable text in {', '.join(map(str, paths[:3]))}.{why}")
        return cut(self.texts, self.longest)

    def _conversations(self, path: Path) -> None:
        """The conversations of a file with one in each line. What cannot be used is passed over, with a note."""
        wrong: list[str] = []
        found = 0
        for number, line in lines_of(path):
            try:
                record = record_of(line)
                if isinstance(text := record.get("text"), str):
                    self._add(line, encode(self.tokenizer, text, verbose=False))
                else:
                    for tokens, counted in learned(self.tokenizer, conversation_of(record)):
                        self._add(line, tokens, counted)
                found += 1
            except (Unusable, UsageError) as error:
                wrong.append(f"line {number}: {error}")
        if wrong:
            of_all = f"{len(wrong)} of {len(wrong) + found} lines of {path} cannot be used"
            self.notes.append(f"{of_all} (the first: {wrong[0].rstrip('.')}).")

    def _add(self, source: str, tokens: list[int], counted: list[bool] | None = None) -> None:
        """Take a text that was made of `source`."""
        if len(tokens) >= SHORTEST:
            self.texts.append((tokens, counted or [True] * len(tokens), kept_apart(source)))


def kept_apart(source: str) -> bool:
    """Is what was made of `source` kept apart to measure with? It depends on nothing else."""
    return xxhash.xxh3_64_intdigest(source.encode("utf-8", "surrogatepass")) < HELD_OUT * 2**64


def cut(texts: Sequence[Text], longest: int) -> Pieces:
    """The pieces of `texts`, none longer than `longest` tokens. Where all texts are on one side, the ends of some go to the other:
    there is always something to learn from and something to measure with. UsageError where that is not possible."""
    pieces = [piece for text in texts for piece in _pieces_of(text, longest) if any(piece[1])]
    if not pieces:
        raise UsageError("No token of the data is one that a head could learn to guess: the texts are too short.")
    if len({apart for _, _, apart in pieces}) == 1:
        whole = next(text for text in texts if any(any(marks) for _, marks, _ in _pieces_of(text, longest)))
        pieces = _parted(pieces) if len(pieces) > 1 else _halves(whole, longest)
    return Pieces.joined(pieces)


def _pieces_of(text: Text, longest: int) -> Iterator[Text]:
    """A text in pieces of `longest` tokens. The first two tokens of a piece cannot be guessed: nothing is known before them."""
    tokens, counted, apart = text
    for start in range(0, len(tokens), longest):
        part = slice(start, start + longest)
        if len(tokens[part]) >= SHORTEST:
            yield tokens[part], [False, False, *counted[part][2:]], apart


def _parted(pieces: list[Text]) -> list[Text]:
    """The same, of which there are several, with the last ones kept apart."""
    learn = [(tokens, counted, False) for tokens, counted, _ in pieces]
    kept = max(1, round(HELD_OUT * len(learn)))
    return [*learn[:-kept], *((tokens, counted, True) for tokens, counted, _ in learn[-kept:])]


def _halves(text: Text, longest: int) -> list[Text]:
    """The only text, hardly longer than `longest`, with its end kept apart. UsageError where it is too short for that."""
    tokens, counted, _ = text
    size = max(SHORTEST, round(HELD_OUT * len(tokens)))
    sides = ((slice(0, len(tokens) - size), False), (slice(len(tokens) - size, len(tokens)), True))
    halves = [(tokens[part][:longest], [False, False, *counted[part][2:longest]], apart) for part, apart in sides]
    if len(tokens) < 2 * size or not all(any(marks) for _, marks, _ in halves):
        raise UsageError(f"The data has {len(tokens)} tokens: that is too little to learn from and to measure with.")
    return halves


def content(path: Path) -> str:
    """The text of a file. Raises UsageError where it cannot be read or is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text: give text files, or conversations in .jsonl files.") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1. Raises UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.decode("utf-8", "surrogateescape").strip().removeprefix("\ufeff")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None


def record_of(line: str) -> Mapping[str, Any]:
    """The JSON object of a line of `lines_of`. Raises Unusable where it is none, or not whole."""
    try:
        line.encode()
        record = json.loads(line)
    except UnicodeEncodeError:
        raise Unusable("it is no UTF-8 text") from None
    except (ValueError, RecursionError):
        raise Unusable("it is no JSON") from None
    if not isinstance(record, dict):
        raise Unusable("it is no JSON object")
    return record

