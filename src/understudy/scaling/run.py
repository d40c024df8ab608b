"""`understudy scale`, step by step: texts of the target's own, heads that are trained and judged on them, speeds, and a study."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..drafters import DEFAULT_METHOD, PLAIN_METHOD
from ..drafters.start import FILE as START
from ..drafters.start import Start
from ..errors import UsageError
from ..heads import HeadConfig
from ..heads.files import CONFIG, check, config_of, load
from ..heads.held import Holding
from ..heads.source import Bearer
from ..llm import LLM
from ..models.stock import configuration
from ..models.stock.shape import ModelShape
from ..params import SamplingParams
from ..registry import find
from ..training import Report
from ..training import run as training
from ..training.batches import Batches
from ..training.data import TextReader
from ..training.dump import Dump, DumpSize, reader_of
from ..training.judge import BATCH_TOKENS, judge
from ..training.kinds import KINDS, Basis
from ..training.kinds import config_of as head_config
from ..training.order import Order, check_data, making
from ..training.own_texts import Measured, TextSizes, beginnings, greedy_texts
from ..training.target import FrozenTarget, is_tied
from ..weights.integrity import file_checksum
from ..weights.store import Store
from ..weights.writing import only_process
from .cells import Accepted, Cell, Records, grid
from .laws import Speed
from .speed import Way, measured
from .study import Study

# The folder of heads, and the record of the texts that the target wrote.
HEADS = "heads"
TEXTS = "texts"
# Tokens of the longest piece of a text, as training has it.
CONTEXT = Order.context
OTHERWISE = "choose another directory with -o"
# Texts of each way of drafting whose speed is measured, for each that runs together.
TURNS = 2


@dataclass(frozen=True)
class ScaleOrder:
    """What is to be measured."""

    # As for `LLM`.
    model: str | None
    # Where heads and records are kept.
    output: Path
    data: tuple[Path, ...]
    # The kind of heads to train, and options of it besides its depth, such as "eagle" or "clover2:heads=4".
    head: str = "eagle"
    depths: tuple[int, ...] = (1, 2, 3, 4)
    # Tokens that each head learns from.
    budgets: tuple[int, ...] = (20_000, 40_000, 80_000)
    # Heads that were trained before.
    heads: tuple[Path, ...] = ()
    # Where hidden states are kept; None: in `output`.
    dump: Path | None = None
    seed: int = 0
    # Tokens of a step of training, and those apart that its loss is measured on.
    batch_tokens: int = 1024
    measured: int = 8192
    # Peak learning rate; 0: the paper's, for the model's width.
    rate: float = 0.0
    # Texts that the target writes, tokens of the beginning of each, and tokens that it writes.
    prompts: int = 24
    prompt_tokens: int = 64
    new_tokens: int = 96
    # Levels of the drafts.
    levels: int = 5
    # Texts at once, and nodes of a level, whose speeds are measured; no batches: none is.
    batches: tuple[int, ...] = (1, 2, 4)
    widths: tuple[int, ...] = (1, 2, 4)
    # Options of loading the model.
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batches and max(self.batches) > self.prompts:
            raise UsageError(f"{max(self.batches)} texts at once need as many prompts: give --prompts {max(self.batches)} or more.")
        if self.new_tokens < self.levels:
            least = f"give --new-tokens {self.levels} or more"
            raise UsageError(f"Drafts of {self.levels} levels cannot be judged on fewer tokens: {least}.")

    @property
    def cells(self) -> list[Cell]:
        """The heads to train: none, where some are given. Those of a kind that knows no depth differ in their tokens alone."""
        kind = find("head", KINDS, self.head.partition(":")[0])
        depths = self.depths if "depth" in inspect.signature(kind).parameters else (0,)
        return grid(self.head, depths, self.budgets) if not self.heads else []


class Scale:
    """A study under way. Whatever is done is on disk: the same order goes on where a run was killed."""

    def __init__(self, order: ScaleOrder, report: Report):
        self.order = order
        self.report = report
        check_data(order.data)
        self.cells = order.cells
        self.given = {path: config_of(path) for path in order.heads}
        self.store: Store = LLM.prepare(order.model, progress=report, **making(order.options))
        self.config = configuration.config_of(self.store.path)
        facts = Bearer.of_store(self.store, self.config).facts
        for path, config in self.given.items():
            check(config, facts, str(path))
        basis = Basis.of(facts, self.config, is_tied(self.store), 0)
        for cell in self.cells:
            head_config(cell.spec, basis)
            self._order(cell).check_numbers()
        # By cell, each head's directory, whether it is there already or not.
        self.heads = {cell: order.output / HEADS / cell.name for cell in self.cells} | self._given_cells()
        self.records = Records.open(order.output, self._question())

    def _question(self) -> dict[str, Any]:
        """What the records are an answer to. Depths, budgets, batches and widths may grow later."""
        digest = xxhash.xxh3_64()
        for path in self.order.data:
            digest.update(path.read_bytes())
        names = ("head", "seed", "batch_tokens", "rate", "prompts", "prompt_tokens", "new_tokens", "levels")
        asked = {name: getattr(self.order, name) for name in names}
        return {**reader_of(self.store, self.order.options), "data": digest.hexdigest(), "context": self.context, **asked}

    def run(self) -> Study:
        """Do what is not done yet, and say what follows."""
        waiting = partial(self.report, f"waiting for another study in {self.order.output}", 0, 0)
        with only_process(self.order.output / "lock", waiting, OTHERWISE):
            return self._run()

    def _run(self) -> Study:
        # Before heads are trained, since the data may not be enough.
        texts = self._texts()
        for cell in self.records.left(self.cells):
            self._train(cell)
        found = self._judged(texts)
        speeds = list(self._speeds(found, texts))
        study = Study.of(self.order.model or "demo", found, speeds)
        for one in found:
            start_of(one, study).save(Path(one.head))
        return study

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        asked: int = self.order.options.get("context", CONTEXT)
        return min(asked, ModelShape.of(self.config).positions or asked)

    def _order(self, cell: Cell) -> Order:
        """What trains the head of a cell."""
        order = self.order
        options = {name: value for name, value in order.options.items() if name != "context"}
        return Order(
            order.model, cell.spec, order.data, order.output / HEADS / cell.name, order.dump or order.output / "dump",
            tokens=cell.tokens, measured=order.measured, seed=order.seed, context=self.context, batch_tokens=order.batch_tokens,
            rate=order.rate, options=options,
        )  # fmt: skip

    def _train(self, cell: Cell) -> None:
        """Train the head of a cell, if that was not done before its record was written."""
        if not (self.heads[cell] / CONFIG).exists():
            self.report(f"{cell.name}: {cell.tokens:,} tokens to learn from", 0, 0)
            training.train(self._order(cell), self.report)

    def _texts(self) -> Measured:
        """What the target writes after held-out beginnings; written now if it was not before."""
        if (record := self.records.find(TEXTS)) is not None:
            return Measured.of(record)
        prompts = self._prompts()
        self.report(f"the target writes {len(prompts)} texts to judge heads by", 0, 0)
        with LLM(self.store.path, progress=self.report, **self._loading(DEFAULT_METHOD, rows=1)) as llm:
            found = greedy_texts(llm, prompts, self.order.new_tokens, True, self.report)
        self.records.keep(TEXTS, asdict(found))
        return found

    def _prompts(self) -> list[list[int]]:
        """Beginnings of texts that no head learns from. UsageError where there are fewer than run together."""
        order = self.order
        tokenizer = configuration.tokenizer_of(self.store.path, self.store.embedding.shape[0])
        pieces = TextReader(tokenizer, self.context).read(order.data)
        found = beginnings(pieces, TextSizes(order.prompts, order.prompt_tokens, order.new_tokens), self.context)
        needed = max(order.batches, default=1)
        if len(found) < needed:
            raise UsageError(f"Of the data, {len(found)} texts kept apart are long enough, where {needed} are needed: give more.")
        return found

    def _loading(self, method: str, **more: Any) -> dict[str, Any]:
        """Keywords of LLM."""
        return {"generation_config": "none", **self.order.options, "context": self.context, "method": method, **more}

    def _judged(self, texts: Measured) -> list[Accepted]:
        """What each head is worth; judged now where that was not done before."""
        known = {cell: self.records.accepted(cell) for cell in self.heads}
        if missing := {cell: path for cell, path in self.heads.items() if known[cell] is None}:
            batches, target = self._reading(texts, [config_of(path) for path in missing.values()])
            for number, (cell, path) in enumerate(missing.items()):
                self.report("judging heads", number, len(missing))
                head = load(path, Holding(torch.float32))
                judged = judge(head, target, replace(batches, taps=head.config.taps), self.order.levels)
                accepted = Accepted(
                    cell, str(path), judged.tokens_per_pass, judged.positions, judged.judged, by_text=judged.by_text
                )
                self.records.keep_accepted(accepted)
                self.report(f"{cell.name}: {judged.tokens_per_pass:.3f} tokens a pass", 0, 0)
                known[cell] = accepted
            batches.dump.close()
        # A study, or a head, may lie elsewhere now.
        return [replace(one, head=str(self.heads[cell])) for cell, one in known.items() if one is not None]

    def _given_cells(self) -> dict[Cell, Path]:
        """A cell for each head that was trained before. What it learned from is what its directory tells. UsageError for two heads
        of one kind, depth and training."""
        found: dict[Cell, Path] = {}
        for path, config in self.given.items():
            # Without what a study writes beside a head.
            files = [file for file in sorted(path.glob("*.*")) if not file.name.startswith(START)]
            digest = xxhash.xxh3_64_hexdigest(" ".join(map(file_checksum, files)).encode())
            cell = Cell(config.kind, config.layers, training.tokens_of(path), digest)
            for other in found:
                if other.place == cell.place:
                    alike = f"{cell.kind}, {cell.depth} decoder layers, {cell.tokens:,} tokens"
                    raise UsageError(f"{found[other]} and {path} are alike for a study ({alike}): give one of them.")
            found[cell] = path
        return found

    def _reading(self, texts: Measured, configs: Sequence[HeadConfig]) -> tuple[Batches, FrozenTarget]:
        """The texts with the hidden states that heads of `configs` read, and what is needed of the target to judge them."""
        pieces = texts.pieces
        size = DumpSize.of(self.store, (tap for config in configs for tap in config.taps), self.order.options)
        taps = size.taps
        folder = self.order.output / f"texts-{'-'.join(map(str, taps))}"
        dump = Dump(folder, size, reader_of(self.store, self.order.options))
        dump.check(pieces, self.report)
        if dump.missing(pieces):
            with LLM(self.store.path, progress=self.report, **self._loading(PLAIN_METHOD, rows=1, taps=taps)) as llm:
                dump.fill(pieces, llm.model, self.report)
            gc.collect()
        return Batches(pieces, dump, taps, BATCH_TOKENS, self.order.seed), FrozenTarget(self.store, self.config)

    def _speeds(self, found: Sequence[Accepted], texts: Measured) -> Iterator[Speed]:
        """Speeds of the best head of each depth in the smallest batch, and of the fastest of them in the others; of no head too."""
        if not self.order.batches:
            return
        least, *others = sorted(set(self.order.batches))
        plain = Way(PLAIN_METHOD, "", 0, least, 0, 0)
        yield self._speed(plain, texts)
        best = {(one.cell.kind, one.cell.depth): one for one in sorted(found, key=lambda one: one.tokens_per_pass)}
        ways = [
            Way(one.cell.kind.partition(":")[0], one.head, one.cell.depth, least, width, self.order.levels)
            for one in best.values()
            for width in sorted(set(self.order.widths))
        ]
        speeds = {way: self._speed(way, texts) for way in ways}
        yield from speeds.values()
        fastest = max(ways, key=lambda way: speeds[way].tokens_per_second)
        for batch in others:
            yield self._speed(replace(plain, batch=batch), texts)
            for width in sorted(set(self.order.widths)):
                yield self._speed(replace(fastest, batch=batch, width=width), texts)

    def _speed(self, way: Way, texts: Measured) -> Speed:
        """The speed of one way; measured now if it was not before, with the same options of loading the model."""
        options = self._loading(way.method)
        digest = next((cell.digest for cell, path in self.heads.items() if str(path) == way.head), "")
        name = way.name(sorted(map(str, options.items())), digest)
        if (record := self.records.find(name)) is None:
            params = SamplingParams(0.0, max_new_tokens=self.order.new_tokens, ignore_eos=True)
            count = min(TURNS * way.batch, len(texts.prompts))
            prompts = [tokens[:length] for tokens, length in zip(texts.texts[:count], texts.prompts, strict=False)]
            speed = measured(self.store.path, way, prompts, params, options)
            gc.collect()
            record = asdict(speed)
            self.records.keep(name, record)
            self.report(f"{way.spec} at batch {way.batch}: {speed.tokens_per_second:.1f} tok/s", 0, 0)
        return Speed(**record)


def start_of(one: Accepted, study: Study) -> Start:
    """What a drafter with this head should expect before its first pass."""
    speeds = [speed for speed in study.speeds if speed.head == one.head]
    tokens = max((speed.tokens_per_pass for speed in speeds), default=one.tokens_per_pass)
    if study.passes is None:
        return Start(tokens)
    shared, own = study.passes.terms
    return Start(tokens, shared, own, study.passes.whole / study.passes.node)
