"""`LLM`, the whole package in one object: it finds, prepares, plans and loads a model, and continues prompts with exact tokens."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .batch import Heads
from .drawable import plan_for
from .engine import Engine
from .errors import UsageError
from .kernels.team import disband
from .loading import load, prepare_here
from .making import CLOSED, RequestMaker
from .models.identity import identity_of
from .models.model import Model
from .models.numbers import explain
from .options import Options
from .params import SamplingParams
from .plan.other_machine import OtherMachine
from .plan.placement import Plan
from .prefixes.disk import DiskPrefixes
from .prefixes.files import directory_of
from .prompts import Prompt
from .request import Completion, Request, Step
from .scheduler import Scheduler
from .sources import Report
from .stats import Counters, Stats
from .weights.holding import Hold
from .weights.store import Store

__all__ = ["LLM", "Completion", "SamplingParams", "Stats", "Step"]


class LLM:
    """A loaded model that generates text: `LLM("Qwen/Qwen2.5-7B", memory="8GiB").generate("...")`.

    `generate`, `stream`, `chat` and `stream_chat` may be called from many threads. All requests run together: a thread that
    waits for a result runs the next pass for every request.

    Args:
        model: the id of a Hugging Face model, a checkpoint directory or a prepared Store. None or "demo": the built-in model.
        progress: called as `progress(stage, done, total)` while a model is prepared and loaded.
        options: the fields of `options.Options`, such as memory="8GiB", context=4096, device="cpu", method="substitute".

    Raises:
        UsageError: an option is unknown, contradicts another one, or does not fit in the memory that was given.
        CheckpointError: the model cannot be found or read, or its kind cannot be run exactly.
        StoreError: the prepared copy cannot be read or written."""

    def __init__(self, model: str | Path | None = None, *, progress: Report | None = None, **options: Any):
        self.options = Options.of(options, os.environ)
        kept = None if self.options.prefix_cache is None else directory_of(self.options.prefix_cache)
        loaded = load(model, self.options, progress)
        self.store = loaded.store
        self.machine = loaded.machine
        self.tokenizer = loaded.tokenizer
        self.model = loaded.model
        self.generation = loaded.generation
        for line in self.generation.warnings if progress is None else ():
            warnings.warn(line, stacklevel=2)
        self.prefixes = None
        if kept is not None:
            self.prefixes = DiskPrefixes.open(kept, self.options.prefix_bytes, identity_of(self.model), self.model.cache)
        self._closing = weakref.finalize(self, _close, self.model, self.prefixes, loaded.hold)
        self.maker = RequestMaker(loaded, self.options.method, self._closing)
        drafter = self.options.drafter.open(self.model)
        if self.prefixes is not None and (own := drafter.own_cache) is not None:
            self.prefixes.add(own.cache, own.identity, own.skipped)
        heads = Heads(self.plan.tile, self.plan.passes.heads(self.plan.rows))
        self.engine = Engine(
            self.model.verify, self.model.cache, drafter, self.plan.pass_nodes, self.model.cost, heads, self.prefixes,
            self.model.device.token_chooser(), self.model.stages,
        )  # fmt: skip
        counters = partial(Counters.of, self.model, self.engine)
        self.scheduler = Scheduler(
            self.engine, self.plan.rows, self.options.batching, counters, self.model.guard, partial(explain, self.model),
            self.maker.room.lacking,
        )  # fmt: skip
        # Passes may run in another thread from now on.
        disband()

    @classmethod
    def plan_only(
        cls,
        model: str | Path | None = None,
        *,
        config: str | Path | None = None,
        machine: str | None = None,
        **options: Any,
    ) -> Plan:
        """The plan of a model, without preparing it or loading its weights.

        Args:
            model: as for `LLM`.
            config: a directory with the config.json of a model whose weights need not be here; takes the place of `model`.
            machine: a machine to plan for in place of this one, such as "cuda:memory=24GB,link=25GB/s,host=64GB" or
                "cpu:memory=16GB,disk=3.5GB/s".
            options: as for `LLM`.

        Returns:
            Where every byte would lie, and the speed that the link allows.

        Raises:
            UsageError: both `model` and `config` are given, or the plan does not fit.
            CheckpointError: the model cannot be found or is of an unsupported kind."""
        other = None if machine is None else OtherMachine.parse(machine)
        if config is None:
            return plan_for(model, Options.of(options, os.environ), other)
        if model is not None:
            raise UsageError("Give MODEL or --config, not both.")
        return plan_for(config, Options.of(options, os.environ), other, config_alone=True)

    @classmethod
    def prepare(cls, model: str | Path | None = None, *, progress: Report | None = None, **options: Any) -> Store:
        """The prepared copy of a model on disk (its Store), made now if it is not there yet.

        Args: as for `LLM`.

        Raises:
            UsageError: an option is unknown or contradicts another one.
            CheckpointError: the model cannot be found or read, or is of an unsupported kind.
            StoreError: the Store cannot be written."""
        chosen = Options.of(options, os.environ)
        return prepare_here(model, chosen, progress)

    @property
    def plan(self) -> Plan:
        """The plan by which the model was loaded: where every byte lies, with all notes so far."""
        return self.model.plan

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens by which the model ends a text."""
        return self.maker.stop_ids

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its continuation may have together."""
        return self.plan.context

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Report | None = None,
    ) -> list[Completion]:
        """Continue prompts, any number of them. They run together, and each one gets the tokens it would get alone.

        Args:
            prompts: a text, a list of token ids, or a list of these.
            params: one SamplingParams for all prompts, or one for each. None: greedy, or what the model's
                generation_config.json says.
            progress: called as `progress("generating", done, total)` whenever a prompt is done.

        Returns:
            One Completion for each prompt, in the order of `prompts`.

        Raises:
            UsageError: a prompt is empty or longer than `context`, a token id is not in the vocabulary, or the numbers of
                prompts and params differ. Nothing is generated then; of several prompts it says which.
            NumbersError: the model computed NaN or infinity for a request.
            GrammarError: no token may follow a text by its constraint.
            TransferError: weights could not be read."""
        work = self.maker.checked(prompts, params)
        total = len(work)
        places: dict[Request, int] = {}
        found: dict[int, Completion] = {}

        def made() -> Iterator[Request]:
            for place in range(total):
                request = self.maker.request(*work.popleft())
                places[request] = place
                yield request

        def ended(request: Request) -> None:
            found[places.pop(request)] = request.completion()
            if progress is not None:
                progress("generating", len(found), total)

        # As many again as run together, so that one waits whenever a place is free.
        self._complete(made(), 2 * self.scheduler.rows, ended)
        return [found[place] for place in range(total)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Step]:
        """Continue one prompt, step by step.

        Args and Raises: as for `generate`.

        Returns:
            An iterator with a Step for each pass that gave text or tokens. Closing it ends the generation. The request begins
            when the first Step is asked for."""
        return self._stream(self.maker.request(self.maker.ids(prompt), params or SamplingParams(), streams=True))

    def chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None) -> Completion:
        """The assistant's next message. A conversation that goes on reads only what is new since the last call.

        Args:
            messages: the conversation so far, each message as {"role": "user", "content": "..."}, or with a list of parts
                {"type": "text", "text": "..."} as its content.
            params: how tokens are chosen, as for `generate`.

        Returns:
            The Completion that holds the message.

        Raises:
            UsageError: the messages do not fit the model's chat template or its context.
            NumbersError, GrammarError, TransferError: as for `generate`."""
        request = self.maker.request(self.maker.chat_ids(messages), params or SamplingParams(), chat=True)
        self._complete([request])
        return request.completion()

    def stream_chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None) -> Iterator[Step]:
        """The assistant's next message, step by step. Args and Raises are those of `chat`, the iterator that of `stream`."""
        ids = self.maker.chat_ids(messages)
        return self._stream(self.maker.request(ids, params or SamplingParams(), chat=True, streams=True))

    def chat_ids(self, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]:
        """The token ids of a conversation, by the model's chat template. `options` are what the template is told besides.

        Raises UsageError for messages that the template does not take."""
        return self.maker.chat_ids(messages, **options)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. UsageError where it is empty or holds a token that is not in the vocabulary."""
        return self.maker.ids(prompt)

    def request(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        chat: bool = False,
        stop_ids: Collection[int] = (),
        kept: Collection[int] = (),
    ) -> Request:
        """A request with steps, for those who run `scheduler` themselves: it is not submitted.

        Args:
            ids: the prompt.
            params: how tokens are chosen.
            chat: is it a conversation? Then a reply ends where a plain template's next turn begins.
            stop_ids: tokens that end the text besides the model's own.
            kept: special tokens that are a part of the text.

        Raises:
            UsageError: the prompt is empty, too long, or not of this vocabulary."""
        return self.maker.request(self.maker.ids(ids), params, chat=chat, stop_ids=stop_ids, kept=kept, streams=True)

    def settle(self) -> None:
        """Wait until the ring is full, so that the link is idle when a measurement begins."""
        while self.model.filling():
            time.sleep(0.01)

    def close(self) -> None:
        """Give back memory, threads and files, once the pass under way has ended; what others wait for ends with a UsageError.
        Further calls do nothing."""
        self.scheduler.shut(UsageError(CLOSED))
        self._closing()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, *work: Any) -> None:
        """`Scheduler.complete`, after which the calling thread keeps no other threads."""
        try:
            self.scheduler.complete(*work)
        finally:
            disband()

    def _stream(self, request: Request) -> Iterator[Step]:
        """The steps of `request`, which is queued when the first one is asked for: an iterator nobody begins costs nothing."""
        self.scheduler.submit(request)
        try:
            with contextlib.closing(self.scheduler.follow(request)) as steps:
                yield from steps
        finally:
            disband()


def _close(model: Model, prefixes: DiskPrefixes | None, hold: Hold) -> None:
    """Give back what a loaded model holds."""
    hold.close()
    if prefixes is not None:
        prefixes.close()
    model.close()
