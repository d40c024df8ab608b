"""The whole of it in one object: a model is found, prepared, planned, loaded; prompts go in, exact tokens come out."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import engine as engines
from .drafters import DRAFTERS
from .engine import Engine
from .errors import UnderstudyError, UsageError, first_line
from .loading import load, plan_for, plan_for_config
from .options import Options
from .params import SamplingParams
from .plan.accelerator import short_of
from .plan.placement import Plan
from .registry import build
from .sequence import TokenSequence
from .sources import Report, locate, prepare_source
from .stats import Gauge, Stats
from .text import Reply, chat_prompt, plain_stops
from .weights.store import Store

__all__ = ["LLM", "Completion", "SamplingParams", "Stats", "Step"]

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Step:
    """What one pass gave: text that is decided now, its tokens, and the figures so far."""

    text: str
    token_ids: list[int]
    drafted: int
    accepted: int
    finish_reason: str | None
    stats: Stats


@dataclass(frozen=True)
class Completion:
    """A finished generation; finish_reason is "stop", "length" or "cancelled"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


class LLM:
    """`LLM("Qwen/Qwen2.5-7B", memory="8GiB").generate("...")`. Keyword options are those of loading.Options.

    Raises UsageError for options that make no sense or do not fit, CheckpointError and StoreError for models that cannot be
    read, before anything is generated. Not thread-safe: one call at a time."""

    def __init__(self, model: str | Path | None = None, *, progress: Report | None = None, **options: Any):
        self.options = Options.of(options, os.environ)
        loaded = load(model, self.options, progress)
        self.store = loaded.store
        self.machine = loaded.machine
        self.tokenizer = loaded.tokenizer
        self.model, self.stop_ids, self.generation = loaded.model, loaded.stop_ids, loaded.generation
        for line in self.generation.warnings if progress is None else ():
            warnings.warn(line, stacklevel=2)
        self._lost: UnderstudyError | None = None  # the device was: nothing on it can be trusted any more
        self._closing = weakref.finalize(self, self.model.close)
        drafter = build("method", DRAFTERS, self.options.method, self.model)
        self.engine = Engine(self.model.verify, self.model.cache, drafter, self.plan.passes.tiles * self.plan.tile)

    @classmethod
    def plan_only(cls, model: str | Path | None = None, *, config: str | Path | None = None, **options: Any) -> Plan:
        """Where every byte would go; no weights are loaded, nothing is prepared. `config`, in the place of `model`: the directory
        of a config.json, of a model that need not be here."""
        if config is None:
            return plan_for(model, Options.of(options, os.environ))
        if model is not None:
            raise UsageError("Give MODEL or --config, not both.")
        return plan_for_config(config, Options.of(options, os.environ))

    @classmethod
    def prepare(cls, model: str | Path | None = None, *, progress: Report | None = None, **options: Any) -> Store:
        """Make the Store, or find it made."""
        chosen = Options.of(options, os.environ)
        return prepare_source(locate(model, chosen), chosen, progress)

    @property
    def plan(self) -> Plan:
        """Where every byte lies: the model's own plan, with all notes so far."""
        return self.model.plan

    @property
    def context(self) -> int:
        """Tokens a prompt and its continuation may have together."""
        return self.plan.context

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """One completion for each prompt. All run together, each row with its own length, tree, parameters and seed, and each
        gets the tokens it would get alone; rows join as others finish."""
        several = _several(prompts)
        chosen = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(several)
        if len(chosen) != len(several):
            raise UsageError(f"{len(several)} prompts but {len(chosen)} SamplingParams: give one, or one for each.")
        tickets = [self._ticket(self._ids(prompt), p) for prompt, p in zip(several, chosen, strict=True)]
        for _ in self._run(tickets):
            pass
        return [ticket.completion() for ticket in tickets]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Step]:
        """Steps as passes finish. Leaving the iterator ends the generation; what was read stays in the cache."""
        return self._stream(self._ticket(self._ids(prompt), params or SamplingParams()))

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """The assistant's next message. The cache is kept: only what differs from the last conversation is read."""
        ticket = self._chat_ticket(messages, params)
        for _ in self._run([ticket]):
            pass
        return ticket.completion()

    def stream_chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Iterator[Step]:
        """The same, as it comes."""
        return self._stream(self._chat_ticket(messages, params))

    def settle(self) -> None:
        """Wait until nothing is read ahead any more, so that the link is free for a measurement."""
        while self.model.filling():
            time.sleep(0.01)

    def close(self) -> None:
        """Give back memory, threads and files."""
        self._closing()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        ids = list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)
        vocabulary = self.store.embedding.shape[0]
        if not ids:
            raise UsageError("The prompt is empty: give at least one token to continue.")
        if wrong := [i for i in ids if not 0 <= i < vocabulary]:
            raise UsageError(f"Token id {wrong[0]} is not in this model's vocabulary of {vocabulary}.")
        return ids

    def _chat_ticket(self, messages: Sequence[dict[str, str]], params: SamplingParams | None) -> Ticket:
        return self._ticket(
            chat_prompt(self.tokenizer, messages), params or SamplingParams(), plain_stops(self.tokenizer)
        )

    def _ticket(self, ids: list[int], params: SamplingParams, stops: tuple[str, ...] = ()) -> Ticket:
        room = self.context - len(ids)
        if room < 1:
            raise UsageError(
                f"The prompt has {len(ids)} tokens, the context {self.context}: shorten it or raise --context."
            )
        params = self.generation.resolved(params, len(ids))
        reply = Reply(self.tokenizer, (*params.stop, *stops), ids)
        row = TokenSequence(
            -1,
            ids,
            params,
            frozenset() if params.ignore_eos else self.stop_ids,
            reply.feed,
            min(params.max_new_tokens, room),
        )
        seed = params.seed if params.temperature > 0 else None
        return Ticket(row, reply, Gauge(self.model, self.engine, self.options.method, len(ids), seed))

    def _stream(self, ticket: Ticket) -> Iterator[Step]:
        with contextlib.closing(self._run([ticket])) as passes:
            for steps in passes:
                for step in steps:
                    text = ticket.reply.take(final=step.row.finish_reason is not None)
                    yield Step(
                        text, step.tokens, step.drafted, step.accepted, step.row.finish_reason, ticket.gauge.stats()
                    )

    def _run(self, tickets: list[Ticket]) -> Generator[list[engines.Step], None, None]:
        """Passes until every ticket is finished; rows are admitted while the cache and one context's worth of prompt allow."""
        if self._lost is not None:
            raise self._lost
        waiting = list(tickets)
        try:
            while waiting or self.engine.rows:
                admitted = self._admit(waiting)
                try:
                    steps = self.engine.step()
                except torch.OutOfMemoryError as error:
                    self.model.supply.abandon()
                    raise _out_of_memory(error) from None
                except RuntimeError as error:
                    if self.model.device is None or "CUDA" not in str(error):
                        self.model.supply.abandon()
                        raise
                    self._lost = _lost(self.model.device.name, error)
                    raise self._lost from None
                except BaseException:
                    self.model.supply.abandon()
                    raise
                running = {id(step.row) for step in steps}
                for ticket in tickets:
                    if id(ticket.row) in running:
                        ticket.gauge.count([s for s in steps if s.row is ticket.row], prefill=ticket in admitted)
                yield steps
        finally:
            for row in list(self.engine.rows):
                self.engine.release(row)

    def _admit(self, waiting: list[Ticket]) -> list[Ticket]:
        taken = {row.row for row in self.engine.rows}
        free = [index for index in range(self.plan.rows) if index not in taken]
        admitted: list[Ticket] = []
        room = self.context
        while waiting and free and (len(waiting[0].row.tokens) <= room or not admitted):
            ticket = waiting.pop(0)
            kept = self.engine.kept
            free.sort(key=lambda index: -engines.common_prefix(kept.get(index, ()), ticket.row.tokens))
            ticket.row.row = free.pop(0)
            room -= len(ticket.row.tokens)
            self.engine.admit(ticket.row)
            admitted.append(ticket)
        return admitted


@dataclass
class Ticket:
    """One request on its way through the engine."""

    row: TokenSequence
    reply: Reply
    gauge: Gauge

    def completion(self) -> Completion:
        self.reply.take(final=True)
        ids = self.row.tokens[self.row.prompt_length :]
        return Completion(self.reply.text, ids, self.row.finish_reason or "cancelled", self.gauge.stats())


def _out_of_memory(error: torch.OutOfMemoryError) -> UnderstudyError:
    what = f"The device ran out of memory in this request ({short_of(error)})"
    return UnderstudyError(f"{what}: shorten the prompt, or choose a smaller --context or --memory. Others can go on.")


def _lost(name: str, error: RuntimeError) -> UnderstudyError:
    return UnderstudyError(f"{name} stopped working in the middle of a request ({first_line(error)}): load the model again.")


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    if isinstance(prompts, Mapping) or not len(prompts):
        raise UsageError("There is no prompt: give a text, a list of token ids, or a list of those.")
    return list(prompts)  # type: ignore[arg-type]
