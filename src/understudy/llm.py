"""`LLM`, the whole package in one object: it finds, prepares, plans and loads a model, and continues prompts with exact tokens."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

from .adjust import check_biases
from .chat_template import chat_prompt, encode, plain_stops
from .engine import Engine
from .errors import UsageError
from .loading import load
from .models.numbers import explain
from .options import Options
from .params import SamplingParams
from .plan.other_machine import OtherMachine
from .plan.placement import Plan
from .planning import plan_for, plan_for_config
from .policies import POLICIES
from .registry import build
from .request import Completion, Request, Step
from .scheduler import Scheduler
from .sequence import TokenSequence
from .sources import Report, locate, prepare_source
from .stats import Counters, RequestMeter, Stats
from .text import TextStream
from .weights.store import Store

__all__ = ["LLM", "Completion", "SamplingParams", "Stats", "Step"]

Prompt = str | Sequence[int]


class LLM:
    """A loaded model that generates text: `LLM("Qwen/Qwen2.5-7B", memory="8GiB").generate("...")`.

    `generate`, `stream`, `chat` and `stream_chat` may be called from many threads. All requests run together: a thread that
    waits for a result runs the next pass for every request.

    Args:
        model: the id of a Hugging Face model, a checkpoint directory or a prepared Store. None: the built-in model.
        progress: called as `progress(stage, done, total)` while a model is prepared and loaded.
        options: the fields of `options.Options`, such as memory="8GiB", context=4096, device="cpu", method="substitute".

    Raises:
        UsageError: an option is unknown, contradicts another one, or does not fit in the memory that was given.
        CheckpointError: the model cannot be found or read, or its kind cannot be run exactly.
        StoreError: the prepared copy cannot be read or written."""

    def __init__(self, model: str | Path | None = None, *, progress: Report | None = None, **options: Any):
        self.options = Options.of(options, os.environ)
        loaded = load(model, self.options, progress)
        self.store = loaded.store
        self.machine = loaded.machine
        self.tokenizer = loaded.tokenizer
        self.model = loaded.model
        self.stop_ids = loaded.stop_ids
        self.generation = loaded.generation
        for line in self.generation.warnings if progress is None else ():
            warnings.warn(line, stacklevel=2)
        self._closing = weakref.finalize(self, self.model.close)
        drafter = self.options.drafter.open(self.model)
        self.engine = Engine(self.model.verify, self.model.cache, drafter, self.plan.pass_nodes, self.model.cost)
        policy = build("policy", POLICIES, self.options.policy)
        counters = partial(Counters.of, self.model, self.engine)
        self.scheduler = Scheduler(
            self.engine, self.plan.rows, policy, counters, self.model.guard, partial(explain, self.model)
        )

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
        return plan_for_config(config, Options.of(options, os.environ), other)

    @classmethod
    def prepare(cls, model: str | Path | None = None, *, progress: Report | None = None, **options: Any) -> Store:
        """The prepared copy of a model on disk (its Store), made now if it is not there yet.

        Args: as for `LLM`.

        Raises:
            UsageError: an option is unknown or contradicts another one.
            CheckpointError: the model cannot be found or read, or is of an unsupported kind.
            StoreError: the Store cannot be written."""
        chosen = Options.of(options, os.environ)
        return prepare_source(locate(model, chosen), chosen, progress)

    @property
    def plan(self) -> Plan:
        """The plan by which the model was loaded: where every byte lies, with all notes so far."""
        return self.model.plan

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its continuation may have together."""
        return self.plan.context

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continue prompts. They run together, and each one gets the tokens it would get alone.

        Args:
            prompts: a text, a list of token ids, or a list of these.
            params: one SamplingParams for all prompts, or one for each. None: greedy, or what the model's
                generation_config.json says.

        Returns:
            One Completion for each prompt, in the order of `prompts`.

        Raises:
            UsageError: a prompt is empty or longer than `context`, a token id is not in the vocabulary, or the numbers of
                prompts and params differ.
            NumbersError: the model computed NaN or infinity for a request.
            TransferError: weights could not be read."""
        several = _several(prompts)
        one = SamplingParams() if params is None else params
        chosen: list[Any] = list(params) if _is_list(params) else [one] * len(several)
        if len(chosen) != len(several):
            raise UsageError(f"{len(several)} prompts but {len(chosen)} SamplingParams: give one, or one for each.")
        requests = [self._request(self._ids(prompt), own) for prompt, own in zip(several, chosen, strict=True)]
        self.scheduler.complete(requests)
        return [request.completion() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Step]:
        """Continue one prompt, step by step.

        Args and Raises: as for `generate`.

        Returns:
            An iterator with a Step for each pass that gave text or tokens. Closing it ends the generation. The request begins
            when the first Step is asked for."""
        return self._stream(self._request(self._ids(prompt), params or SamplingParams(), streams=True))

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """The assistant's next message. A conversation that goes on reads only what is new since the last call.

        Args:
            messages: the conversation so far, each message as {"role": "user", "content": "..."}.
            params: how tokens are chosen, as for `generate`.

        Returns:
            The Completion that holds the message.

        Raises:
            UsageError: the messages do not fit the model's chat template or its context.
            NumbersError, TransferError: as for `generate`."""
        request = self._chat_request(messages, params)
        self.scheduler.complete([request])
        return request.completion()

    def stream_chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Iterator[Step]:
        """The assistant's next message, step by step. Args and Raises are those of `chat`, the iterator that of `stream`."""
        return self._stream(self._chat_request(messages, params, streams=True))

    def chat_ids(self, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]:
        """The token ids of a conversation, by the model's chat template. `options` are what the template is told besides.

        Raises UsageError for messages that the template does not take."""
        return self._ids(chat_prompt(self.tokenizer, messages, **options))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. UsageError where it is empty or holds a token that is not in the vocabulary."""
        return self._ids(prompt)

    def request(
        self, ids: Sequence[int], params: SamplingParams, *, chat: bool = False, stop_ids: Collection[int] = ()
    ) -> Request:
        """A request with steps, for those who run `scheduler` themselves: it is not submitted.

        Args:
            ids: the prompt.
            params: how tokens are chosen.
            chat: is it a conversation? Then a reply ends where a plain template's next turn begins.
            stop_ids: tokens that end the text besides the model's own.

        Raises:
            UsageError: the prompt is empty, too long, or not of this vocabulary."""
        stops = plain_stops(self.tokenizer) if chat else ()
        request = self._request(self._ids(ids), params, stops, streams=True)
        request.sequence.stop_ids |= frozenset(stop_ids)
        return request

    def settle(self) -> None:
        """Wait until the ring is full, so that the link is idle when a measurement begins."""
        while self.model.filling():
            time.sleep(0.01)

    def close(self) -> None:
        """Give back memory, threads and files. Further calls do nothing."""
        self._closing()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        ids = encode(self.tokenizer, prompt) if isinstance(prompt, str) else _token_ids(prompt)
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
        if not isinstance(params, SamplingParams):
            raise UsageError(f"params must be SamplingParams, or a list of those, got {params!r}.")
        if not self._closing.alive:
            raise UsageError("This LLM is closed: load the model again.")
        room = self.context - len(ids)
        if room < 1:
            raise UsageError(
                f"The prompt has {len(ids)} tokens, the context {self.context}: shorten it or raise --context."
            )
        params = self.generation.resolved(params, len(ids))
        check_biases(params, self.store.embedding.shape[0])
        reply = TextStream(self.tokenizer, (*params.stop, *stops), ids, params.min_tokens)
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
        """The steps of `request`, which is queued when the first one is asked for: an iterator nobody begins costs nothing."""
        self.scheduler.submit(request)
        with contextlib.closing(self.scheduler.follow(request)) as steps:
            yield from steps


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """The prompts one by one; an array or tensor stands for the list it holds."""
    listed: Any = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(listed, str) or (_is_list(listed) and len(listed) and isinstance(listed[0], Integral)):
        return [listed]
    if not _is_list(listed) or not len(listed):
        raise UsageError("There is no prompt: give a text, a list of token ids, or a list of those.")
    return list(listed)


def _token_ids(prompt: Sequence[int]) -> list[int]:
    listed = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not _is_list(listed) or not all(isinstance(token, Integral) for token in listed):
        raise UsageError(f"A prompt is a text or a list of token ids, got {repr(listed)[:80]}.")
    return [int(token) for token in listed]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
