"""Texts that the target writes itself: greedy ones, to measure with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ..errors import UsageError
from ..llm import LLM
from ..params import SamplingParams
from ..weights.store import Store
from ..weights.writing import explained
from . import Report
from .data import Pieces
from .dump import Dump
from .judge import Judged, written


@dataclass(frozen=True)
class TextSizes:
    """How many texts the target writes, and of what length."""

    texts: int = 12
    # Tokens of a prompt that is the beginning of a text, at most, and those that the target writes after one.
    prompt: int = 96
    new: int = 64


@dataclass(frozen=True)
class Measured:
    """Greedy texts of the target."""

    # The tokens of each, its prompt in front, and the length of that.
    texts: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    # Tokens per pass while they were written, drafted by the substitute; None: there was no room for it.
    substitute: float | None

    @property
    def pieces(self) -> Pieces:
        """Each as a piece."""
        return written(self.texts, self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens that the target wrote."""
        return sum(map(len, self.texts)) - sum(self.prompts)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measured:
        """Those that `asdict` made `record` of, perhaps through JSON. Raises KeyError or TypeError where that has none."""
        return cls(tuple(map(tuple, record["texts"])), tuple(record["prompts"]), record.get("substitute"))

    @classmethod
    def load(cls, path: Path) -> Measured | None:
        """Those that a run before wrote to `path`; None where there are none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return cls.of(json.loads(path.read_text()))
        return None

    def save(self, path: Path) -> None:
        """Write them to `path`. Raises StoreError where that is not possible."""
        with explained(path.parent):
            path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Worth:
    """What a head was measured to be worth on greedy texts of its target, and the substitute on the same."""

    texts: int
    # Tokens that the target wrote.
    tokens: int
    # Of chains of the head's first choices.
    judged: Judged
    # Accepted tokens per pass of the substitute's trees; None: there was no room for it.
    substitute: float | None

    def lines(self, name: str) -> list[str]:
        """For people."""
        shares = " ".join(f"{share:.0%}" for share in self.judged.positions)
        found = [
            f"accepted tokens per pass on {self.texts} texts of the model's own, {self.tokens:,} tokens, greedy:",
            f"  {self.judged.tokens_per_pass:.2f}  chains of {name} (right by position: {shares})",
        ]
        if self.substitute is not None:
            found.append(f"  {self.substitute:.2f}  trees of the substitute")
        return found


def measured_texts(store: Store, options: dict[str, Any], pieces: Pieces, dump: Dump, report: Report) -> Measured:
    """Texts that go on from the beginnings of pieces kept apart, whose hidden states are in `dump` then.

    `options`: those of loading the model. What an earlier run with this dump wrote, for whichever head, is not written again."""
    apart = "".join(pieces.keys[piece] for piece in pieces.chosen(held_out=True))
    file = dump.directory / f"measured-{xxhash.xxh3_64_hexdigest(f'{apart} {options}'.encode())}.json"
    found = Measured.load(file)
    if found is not None and not dump.missing(found.pieces):
        return found
    options = {"generation_config": "none", **options, "taps": dump.size.taps}
    try:
        llm = LLM(store.path, progress=report, **options)
        drafts = True
    except UsageError as error:
        report(f"the substitute is not measured: {error}", 0, 0)
        llm = LLM(store.path, progress=report, method="none", **options)
        drafts = False
    with llm:
        sizes = TextSizes()
        found = greedy_texts(llm, beginnings(pieces, sizes, llm.context), sizes.new, drafts, report)
        dump.fill(found.pieces, llm.model, report)
    found.save(file)
    return found


def beginnings(pieces: Pieces, sizes: TextSizes, context: int) -> list[list[int]]:
    """Prompts in pieces kept apart, as many as `sizes` has texts where there are so many, from all over the pieces: what stands
    before the first token to be guessed, or parts of a text of which all are. None is longer than half of `context`."""
    found = []
    for piece in pieces.chosen(held_out=True):
        tokens = pieces.tokens[pieces.part(piece)].tolist()
        first = int(pieces.counted[pieces.part(piece)].nonzero()[0])
        # The first two tokens of any text do not count, since a head cannot guess them.
        if first > 2:
            found.append(tokens[: min(first, context // 2)])
            continue
        most = min(sizes.prompt, max(2, len(tokens) // 2), context // 2)
        found += [tokens[start : start + most] for start in range(0, len(tokens) - most + 1, 2 * most)]
    return found[:: max(1, len(found) // sizes.texts)][: sizes.texts]


def greedy_texts(llm: LLM, prompts: Sequence[list[int]], new: int, drafts: bool, report: Report) -> Measured:
    """What the target writes after `prompts`, `new` tokens of each. `drafts`: does the substitute draft?"""
    params = SamplingParams(0.0, max_new_tokens=min(new, llm.context // 2), ignore_eos=True)
    done = llm.generate(prompts, params, progress=lambda _, count, total: report("writing texts to measure with", count, total))
    texts = tuple((*prompt, *own.token_ids) for prompt, own in zip(prompts, done, strict=True))
    rounds = sum(own.stats.rounds for own in done)
    per_pass = sum(own.stats.mean_accepted * own.stats.rounds for own in done) / rounds if drafts and rounds else None
    return Measured(texts, tuple(map(len, prompts)), per_pass)
