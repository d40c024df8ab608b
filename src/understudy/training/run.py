"""`understudy train`, step by step: texts, their hidden states, a head, and what it is worth."""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..heads.files import save
from ..llm import LLM
from ..models.configuration import config_of, tokenizer_of
from ..models.shape import ModelShape
from ..plan.sizes import format_size
from ..weights.store import Store
from ..weights.writing import explained, only_process
from . import Report
from .batches import Batches
from .checkpoints import Checkpoints, Reached
from .data import Pieces, TextReader
from .dump import Dump, DumpSize
from .kinds import Basis, first_head
from .kinds import config_of as head_config
from .loop import Training, TrainingLimits
from .losses import RECIPES
from .target import FrozenTarget, facts_of, is_tied

PARTIAL = ".partial"
# What is written beside a head of how it was trained.
TRAINING = "training.json"
# Rows of the cache that are tried in turn: with more rows, short texts fill a sweep.
ROWS = (8, 4, 2, 1)
# Hidden size that the papers' learning rates are for, and the highest rate for a smaller one.
USUAL = 4096
HIGHEST_RATE = 2e-3


@dataclass(frozen=True)
class Order:
    """What is to be trained, and from what."""

    # As for `LLM`.
    model: str | None
    # A kind of head and its options, such as "eagle:depth=2".
    head: str
    data: tuple[Path, ...]
    output: Path
    # Where hidden states are kept for later trainings; None: they go when the head is done.
    dump: Path | None = None
    epochs: float = 3.0
    # Tokens to learn from in all; 0: as many as there are in `epochs`.
    tokens: int = 0
    minutes: float = 0.0
    # Tokens to measure with, at most.
    measured: int = 1 << 16
    seed: int = 0
    # Tokens that the head can say; 0: all.
    draft_vocab: int = 0
    # Tokens of the longest piece of a text.
    context: int = 1024
    batch_tokens: int = 2048
    # Peak learning rate; 0: the paper's, for this width.
    rate: float = 0.0
    # Further options of loading the model.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A head that was trained, and how."""

    path: Path
    reached: Reached


def train(order: Order, report: Report) -> Trained:
    """Train a head. Raises UsageError for an order that cannot be met, StoreError where something cannot be written, NumbersError
    where a number is none, and what loading a model raises."""
    check(order)
    work = order.output.with_name(order.output.name + PARTIAL)
    order.output.parent.mkdir(parents=True, exist_ok=True)
    with only_process(work.with_name(work.name + ".lock"), lambda: report("waiting for another process that trains it", 0, 0)):
        store = LLM.prepare(order.model, progress=report, **_preparing(order.options))
        trained = _train(order, store, work, report)
        shutil.rmtree(work)
    return trained


def check(order: Order) -> None:
    """Raise UsageError for what can be seen to be wrong before any work."""
    for path in order.data:
        if not path.is_file():
            raise UsageError(f"There is no file {path}: --data takes text files, and conversations in .jsonl files.")
    if order.output.exists() and (not order.output.is_dir() or any(order.output.iterdir())):
        raise UsageError(f"{order.output} is there already: name a new directory with -o.")


def _preparing(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say how a Store is made."""
    return {name: value for name, value in options.items() if name not in {"memory", "resident", "tier"}}


def _train(order: Order, store: Store, work: Path, report: Report) -> Trained:
    config = config_of(store.path)
    pieces = _pieces(order, store, config, report)
    basis = Basis.of(facts_of(store, config), config, is_tied(store), order.draft_vocab)
    made = head_config(order.head, basis)
    dump = _dumped(order, made.taps, store, pieces, work, report)
    try:
        target = FrozenTarget(store, config)
        tokens = pieces.frequent(made.draft_vocab_size) if made.draft_vocab_size else None
        head = first_head(made, target, tokens, order.seed)
        recipe = RECIPES[made.kind]
        batches = Batches(pieces, dump, made.taps, order.batch_tokens, order.seed)
        learn = pieces.counted_tokens(False)
        limit = int(order.epochs * learn) if not order.tokens else order.tokens
        limits = TrainingLimits(limit, order.minutes, every=max(limit // 10, 1))
        subject = {
            "head": order.head, "model": store.source.fingerprint, "data": pieces.digest, "seed": order.seed, "tokens": limit,
            "draft vocabulary": order.draft_vocab, "batch": order.batch_tokens,
        }  # fmt: skip
        rate = order.rate or min(recipe.rate * USUAL / basis.facts.hidden_size, HIGHEST_RATE)
        checkpoints = Checkpoints(work, subject)
        reached = Training(head, target, recipe, batches, limits, rate, checkpoints, report).run()
        save(head.to(dump.size.dtype), order.output)
        told = {"head": order.head, "tokens": reached.tokens, "seed": order.seed, "loss": reached.best}
        with explained(order.output, "choose another directory with -o"):
            (order.output / TRAINING).write_text(json.dumps(told) + "\n", encoding="utf-8")
        return Trained(order.output, reached)
    finally:
        dump.close()


def _pieces(order: Order, store: Store, config: Any, report: Report) -> Pieces:
    """The texts, as many of them as will be learned from."""
    tokenizer = tokenizer_of(store.path, store.embedding.shape[0])
    reader = TextReader(tokenizer, min(order.context, ModelShape.of(config).positions or order.context))
    pieces = reader.read(order.data).limited(order.tokens, order.measured)
    for note in reader.notes:
        report(note, 0, 0)
    learn, measure = (pieces.counted_tokens(held_out) for held_out in (False, True))
    report(f"{learn:,} tokens to learn from and {measure:,} to measure with, in {len(pieces):,} pieces", 0, 0)
    return pieces


def _dumped(order: Order, taps: tuple[int, ...], store: Store, pieces: Pieces, work: Path, report: Report) -> Dump:
    """The hidden states of `pieces` at `taps`, and what the output head is given; read now where they are not there yet."""
    dtype = next(iter(store.linears.values())).dtype
    size = DumpSize(tuple(sorted({*taps, -1})), store.embedding.shape[1], dtype)
    dump = Dump(order.dump or work / "dump", size, {"model": store.source.fingerprint})
    dump.check(pieces, report)
    if not dump.missing(pieces):
        return dump
    report(f"their hidden states take {format_size(dump.missing_bytes(pieces))} in {dump.directory}", 0, 0)
    dump.check_space(pieces)
    with _reading(order, store, size, report) as llm:
        dump.fill(pieces, llm.model, report)
    gc.collect()
    return dump


def _reading(order: Order, store: Store, size: DumpSize, report: Report) -> LLM:
    """The model, loaded to read many texts and to hand out hidden states."""
    options = {**order.options, "method": "none", "taps": size.taps, "context": order.context}
    for rows in ROWS[:-1]:
        with suppress(UsageError):
            LLM.plan_only(store.path, rows=rows, **options)
            return LLM(store.path, rows=rows, progress=report, **options)
    return LLM(store.path, rows=ROWS[-1], progress=report, **options)
