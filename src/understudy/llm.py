"""The whole of it in one object: a model is found, prepared, planned, loaded; prompts go in, exact tokens come out."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .chat_template import chat_prompt, encode, plain_stops
from .engine import Engine
from .errors import UsageError
from .loading import load, plan_for, plan_for_config
from .models.numbers import explain
from .options import Options
from .params import SamplingParams
from .plan.placement import Plan
from .policies import POLICIES
from .registry import build
from .request import Completion, Request, Step
from .scheduler import Scheduler
from .sequence import TokenSequence
from .sources import Report, locate, prepare_source
from .stats import Counters, RequestMeter, Stats
from .text import Reply
from .weights.store import Store

__all__ = ["LLM", "Completion", "SamplingParams", "Stats", "Step"]

Prompt = str | Sequence[int]


class LLM:
    """`LLM("Qwen/Qwen2.5-7B", memory="8GiB").generate("...")`. Keyword options are those of loading.Options.

    Raises UsageError for options that make no sense or do not fit, CheckpointError and StoreError for models that cannot be
    read, before anything is generated. `generate`, `stream` and `chat` may be called from several threads: their requests run
    together, in the passes of whichever thread waits for a result."""

    def __init__(self, model: str | Path | None = None, *, progress: Report | None = None, **options: Any):
        self.options = Options.of(options, os.environ)
        loaded = load(model, self.options, progress)
        self.store = loaded.store
        self.machine = loaded.machine
        self.tokenizer = loaded.tokenizer
        self.model, self.stop_ids, self.generation = loaded.model, loaded.stop_ids, loaded.generation
        for line in self.generation.warnings if progress is None else ():
            warnings.warn(line, stacklevel=2)
        self._closing = weakref.finalize(self, self.model.close)
        drafter = self.options.drafter.open(self.model)
        self.engine = Engine(self.model.verify, self.model.cache, drafter, self.plan.passes.tiles * self.plan.tile)
        policy = build("policy", POLICIES, self.options.policy)
        counters = partial(Counters.of, self.model, self.engine)
        self.scheduler = Scheduler(
            self.engine, self.plan.rows, policy, counters, self.model.guard, partial(explain, self.model)
        )

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
        requests = [self._request(self._ids(prompt), own) for prompt, own in zip(several, chosen, strict=True)]
        self.scheduler.complete(requests)
        return [request.completion() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Step]:
        """Steps as passes finish. Leaving the iterator ends the generation; what was read stays in the cache."""
        return self._stream(self._request(self._ids(prompt), params or SamplingParams(), streams=True))

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """The assistant's next message. The cache is kept: only what differs from the last conversation is read."""
        request = self._chat_request(messages, params)
        self.scheduler.complete([request])
        return request.completion()

    def stream_chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Iterator[Step]:
        """The same, as it comes."""
        return self._stream(self._chat_request(messages, params, streams=True))

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
        ids = encode(self.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
        vocabulary = self.store.embedding.shape[0]
        if not ids:
            raise UsageError("The prompt is empty: give at least one token to continue.")
        if wrong := [i for i in ids if not 0 <= i < vocabulary]:
            raise UsageError(f"Token id {wrong[0]} is not in this model's vocabulary of {vocabulary}.")
        return ids

    def _chat_request(
        self, messages: Sequence[dict[str, str]], params: SamplingParams | None, streams: bool = False
    ) -> Request:
        ids = self._ids(chat_prompt(self.tokenizer, messages))
        return self._request(ids, params or SamplingParams(), plain_stops(self.tokenizer), streams)

    def _request(
        self, ids: list[int], params: SamplingParams, stops: tuple[str, ...] = (), streams: bool = False
    ) -> Request:
        room = self.context - len(ids)
        if room < 1:
            raise UsageError(
                f"The prompt has {len(ids)} tokens, the context {self.context}: shorten it or raise --context."
            )
        params = self.generation.resolved(params, len(ids))
        reply = Reply(self.tokenizer, (*params.stop, *stops), ids)
        sequence = TokenSequence(
            row=-1,
            tokens=ids,
            params=params,
            stop_ids=frozenset() if params.ignore_eos else self.stop_ids,
            stops=reply.feed,
            limit=min(params.max_new_tokens, room),
        )
        seed = params.seed if params.temperature > 0 else None
        meter = RequestMeter(self.model, self.options.method, len(ids), seed)
        return Request(sequence, reply, meter, streams)

    def _stream(self, request: Request) -> Iterator[Step]:
        """Queued with the first step that is asked for, so that an iterator nobody begins costs nothing."""
        self.scheduler.submit(request)
        with contextlib.closing(self.scheduler.follow(request)) as steps:
            yield from steps


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    if isinstance(prompts, Mapping) or not len(prompts):
        raise UsageError("There is no prompt: give a text, a list of token ids, or a list of those.")
    return list(prompts)  # type: ignore[arg-type]
