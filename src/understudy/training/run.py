"""`understudy train`, step by step: texts, their hidden states, a head, and what it is worth."""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..heads import DraftHead, HeadConfig
from ..heads.files import save
from ..heads.source import Bearer
from ..llm import LLM
from ..models.stock.configuration import config_of, tokenizer_of
from ..models.stock.shape import ModelShape
from ..plan.sizes import format_size
from ..weights.checkpoint import read_object
from ..weights.store import Store
from ..weights.writing import explained, only_process
from . import Report
from .answers import Answers, PromptReader
from .batches import Batches
from .checkpoints import OTHERWISE, Checkpoints, Reached
from .data import Pieces, Text, TextReader, cut
from .dump import ELSEWHERE, Dump, DumpSize, reader_of
from .grow import begin_as, check_start
from .judge import judge
from .kinds import Basis, first_head
from .kinds import config_of as head_config
from .loop import Training, TrainingLimits
from .losses import RECIPES, training_bytes
from .order import Order, making
from .own_texts import Worth, measured_texts
from .target import FrozenTarget, is_tied

PARTIAL = ".partial"
# What is written beside a head of how it was trained.
TRAINING = "training.json"
# Measurements of a training, at least.
MEASUREMENTS = 10
# Rows of the cache that are tried in turn: with more rows, short texts fill a sweep.
ROWS = (8, 4, 2, 1)
# Guesses of the chains that a head is judged by.
LEVELS = 6
# Hidden size that the papers' learning rates are for, and the highest rate for a smaller one.
USUAL = 4096
HIGHEST_RATE = 2e-3


@dataclass(frozen=True)
class Trained:
    """A head that was trained, and what it is worth."""

    path: Path
    reached: Reached
    worth: Worth


def train(order: Order, report: Report) -> Trained:
    """Train a head. What a run before did, however it ended, is not done again.

    Raises UsageError for an order that cannot be met, StoreError where something cannot be written, NumbersError where a number is
    none, and what loading a model raises."""
    order.check()
    # A name such as "." is none that another could be made of.
    place = order.output if order.output.name not in ("", "..") else order.output.resolve()
    work = place.with_name(place.name + PARTIAL)
    with explained(place.parent, OTHERWISE):
        place.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
    lock = work.with_name(work.name + ".lock")
    with only_process(lock, lambda: report("waiting for another process that trains it", 0, 0), OTHERWISE):
        # Another process may have made the head meanwhile.
        order.check()
        work.mkdir(exist_ok=True)
        try:
            store = LLM.prepare(order.model, progress=report, **making(order.options))
            trained = HeadRun(order, store, work, report).run()
            shutil.rmtree(work)
        finally:
            _drop_empty(work)
    return trained


def _drop_empty(directory: Path) -> None:
    """Remove a directory in which nothing was done."""
    with suppress(OSError):
        directory.rmdir()


@dataclass
class HeadRun:
    """One run of an order, on a prepared target. `work`: the directory of what is under way."""

    order: Order
    store: Store
    work: Path
    report: Report

    def __post_init__(self) -> None:
        self.config: Any = config_of(self.store.path)
        self.longest = min(self.order.context, ModelShape.of(self.config).positions or self.order.context)
        basis = Basis.of(Bearer.of_store(self.store, self.config).facts, self.config, is_tied(self.store), self.order.draft_vocab)
        # Before any work, since it may be refused.
        self.wanted: HeadConfig = head_config(self.order.head, basis)
        if self.order.start is not None:
            check_start(self.order.start, self.wanted)
        self.recipe = RECIPES[self.wanted.kind]
        self.order.check_memory(training_bytes(self.wanted, self.recipe, basis.tied, self.order.batch_tokens))

    def run(self) -> Trained:
        pieces = self._pieces()
        with self._alone(), closing(self._dumped(pieces)) as dump:
            measured = measured_texts(self.store, self._loading, pieces, dump, self.report)
            gc.collect()
            target = FrozenTarget(self.store, self.config).to(self.order.device)
            batches = Batches(pieces, dump, self.wanted.taps, self.order.batch_tokens, self.order.seed, self.order.device)
            head, reached = self._trained(target, batches)
            judged = judge(head, target, replace(batches, pieces=measured.pieces), LEVELS)
            worth = Worth(len(measured.texts), measured.tokens, judged, measured.substitute)
            self._save(head.to(dump.size.dtype), reached, worth)
            return Trained(self.order.output, reached, worth)

    @property
    def _dump(self) -> Path:
        """Where hidden states lie."""
        return self.order.dump or self.work / "dump"

    def _alone(self) -> AbstractContextManager[None]:
        """No other training uses the hidden states meanwhile: it would write its own where those of this one go."""
        with explained(self._dump, ELSEWHERE):
            self._dump.mkdir(parents=True, exist_ok=True)
        return only_process(
            self._dump / "lock", lambda: self._say(f"waiting for another training that uses {self._dump}"), ELSEWHERE
        )

    @cached_property
    def _loading(self) -> dict[str, Any]:
        """Options of loading the model."""
        return {**self.order.options, "context": self.longest}

    def _pieces(self) -> Pieces:
        """The texts, as many of them as will be learned from."""
        tokenizer = tokenizer_of(self.store.path, self.store.embedding.shape[0])
        if self.order.own:
            pieces = cut(self._answered(tokenizer), self.longest)
        else:
            reader = TextReader(tokenizer, self.longest)
            pieces = reader.read(self.order.data)
            self._say(*reader.notes)
        pieces = pieces.limited(self.order.tokens, self.order.measured)
        learn, measure = (pieces.counted_tokens(held_out) for held_out in (False, True))
        self._say(f"{learn:,} tokens to learn from and {measure:,} to measure with, in {len(pieces):,} pieces")
        return pieces

    def _say(self, *notes: str) -> None:
        for note in notes:
            self.report(note, 0, 0)

    def _answered(self, tokenizer: Any) -> list[Text]:
        """The model's answers to the prompts of the data, given now where they are not there yet.

        Raises UsageError where none could be given."""
        reader = PromptReader(tokenizer, self.longest)
        answers = Answers(
            self.work, self.store.source.fingerprint, reader.read(self.order.data), self.longest, self.order.seed
        )
        self._say(*reader.notes)
        if left := answers.ask():
            self._say(f"{left:,} of {len(answers.prompts):,} prompts are left to answer")
            with LLM(self.store.path, progress=self.report, **self._loading) as llm:
                answers.answer(llm, self.report)
            gc.collect()
        texts = list(answers.texts())
        if failed := answers.failed():
            if not texts:
                raise UsageError(f"There is nothing to learn from: {failed}")
            self._say(failed)
        return texts

    def _dumped(self, pieces: Pieces) -> Dump:
        """The hidden states of `pieces` that the head reads, and what the output head is given; read now where they are missing."""
        size = DumpSize.of(self.store, self.wanted.taps, self.order.options)
        dump = Dump(self._dump, size, reader_of(self.store, self.order.options))
        dump.check(pieces, self.report)
        if not dump.missing(pieces):
            return dump
        self._say(f"hidden states take {format_size(dump.missing_bytes(pieces))} more in {dump.directory}")
        dump.check_space(pieces)
        with self._reading(size) as llm:
            dump.fill(pieces, llm.model, self.report)
        gc.collect()
        return dump

    def _reading(self, size: DumpSize) -> LLM:
        """The model, loaded to read many texts and to hand out hidden states."""
        options = {**self._loading, "method": "none", "taps": size.taps}
        for rows in ROWS[:-1]:
            with suppress(UsageError):
                LLM.plan_only(self.store.path, rows=rows, **options)
                return LLM(self.store.path, rows=rows, progress=self.report, **options)
        return LLM(self.store.path, rows=ROWS[-1], progress=self.report, **options)

    def _trained(self, target: FrozenTarget, batches: Batches) -> tuple[DraftHead, Reached]:
        """The head, with the best weights that were found."""
        order, pieces = self.order, batches.pieces
        tokens = pieces.frequent(self.wanted.draft_vocab_size) if self.wanted.draft_vocab_size else None
        head = first_head(self.wanted, target, tokens, order.seed)
        if order.start is not None:
            begin_as(head, order.start)
        head = head.to(order.device)
        learn = pieces.counted_tokens(held_out=False)
        # At least a step; 0, where minutes alone are told, is as many as there is time for.
        total = order.tokens or (max(int(order.epochs * learn), 1) if order.epochs else 0)
        limits = TrainingLimits(total, order.minutes, every=max((total or learn) // MEASUREMENTS, 1))
        subject = {
            "--head": order.head, **reader_of(self.store, order.options), "--data": pieces.digest, "--seed": order.seed,
            "number of tokens": total, "--draft-vocab": order.draft_vocab, "--batch-tokens": order.batch_tokens,
            "--start": str(order.start) if order.start else None,
        }  # fmt: skip
        rate = order.rate or min(self.recipe.rate * USUAL / target.facts.hidden_size, HIGHEST_RATE)
        checkpoints = Checkpoints(self.work, subject)
        return head, Training(head, target, self.recipe, batches, limits, rate, checkpoints, self.report).run()

    def _save(self, head: DraftHead, reached: Reached, worth: Worth) -> None:
        """The head in its directory, beside how it was trained. It appears whole."""
        made = self.work / "head"
        save(head, made)
        before = tokens_of(self.order.start) if self.order.start else 0
        facts: dict[str, Any] = {"head": self.order.head, "tokens": before + reached.tokens, "steps": reached.step}
        facts |= {"seconds": reached.seconds, "start_tokens": before}
        facts |= {"loss": reached.best, "best_step": reached.best_step, "seed": self.order.seed, "measured": asdict(worth)}
        with explained(self.order.output, OTHERWISE):
            (made / TRAINING).write_text(json.dumps(facts, indent=1) + "\n")
            # In the place of an empty directory, if there is one.
            made.replace(self.order.output)


def tokens_of(head: Path) -> int:
    """The tokens that the head in a directory learned from, with those of a head that it began as; 0: that is not told."""
    path = head / TRAINING
    return int(read_object(path).get("tokens", 0)) if path.exists() else 0
