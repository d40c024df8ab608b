"""Requests are made of prompts and conversations here, and checked before they cost anything."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .adjust import check_biases
from .chat_template import chat_prompt, encode, plain_stops
from .errors import UsageError
from .grammar import GrammarState
from .grammar_compiler import GrammarCompiler
from .params import SamplingParams
from .prompts import Prompt, paired, token_ids
from .reasoning import ReasoningBudget, ReasoningState, begins, check_closing
from .request import Request
from .room import TextRoom
from .sequence import TokenSequence
from .stats import RequestMeter
from .text import TextStream
from .token_texts import TokenTexts

if TYPE_CHECKING:
    from .loading import Loaded

CLOSED = "This LLM is closed: load the model again."


class RequestMaker:
    """Makes the requests of one loaded model, as long as `closing` is alive. `method`: the name of who drafts, for figures."""

    def __init__(self, loaded: Loaded, method: str, closing: weakref.finalize[..., Any]):
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.generation = loaded.generation
        self.stop_ids = loaded.stop_ids
        self.vocabulary = loaded.store.embedding.shape[0]
        # tokens from this one on stand for images and sounds, which no text holds
        self.readable = loaded.readable
        self.room = TextRoom(loaded.model.plan.context, loaded.model.cache)
        self.method = method
        self.closing = closing
        self.grammars = GrammarCompiler(self.tokenizer, self.vocabulary)
        self.texts = TokenTexts(self.tokenizer)

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. UsageError where it is empty or holds a token that is not in the vocabulary."""
        ids = encode(self.tokenizer, prompt) if isinstance(prompt, str) else token_ids(prompt)
        if not ids:
            raise UsageError("The prompt is empty: give at least one token to continue.")
        if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise UsageError(f"Token id {wrong[0]} is not in this model's vocabulary of {self.vocabulary}.")
        if wrong := [i for i in ids if i >= self.readable]:
            raise UsageError(f"Token id {wrong[0]} stands for an image or a sound: this model's text part reads texts alone.")
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The token ids of a conversation. UsageError for messages that the template, told `options`, does not take."""
        return self.ids(chat_prompt(self.tokenizer, messages, **options))

    def checked(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> deque[tuple[list[int], SamplingParams]]:
        """Token ids and parameters of each prompt, as `LLM.generate` takes them.

        Raises UsageError for the first prompt that cannot be continued; of several it says which."""
        pairs = paired(prompts, params)
        found: deque[tuple[list[int], SamplingParams]] = deque()
        for index, (prompt, own) in enumerate(pairs):
            try:
                ids = self.ids(prompt)
                self._resolved(ids, own)
            except UsageError as error:
                if len(pairs) == 1:
                    raise
                raise UsageError(f"prompts[{index}]: {error}") from None
            found.append((ids, own))
        return found

    def request(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        chat: bool = False,
        stop_ids: Collection[int] = (),
        kept: Collection[int] = (),
        streams: bool = False,
    ) -> Request:
        """A request to continue `ids`, which becomes its text.

        Args:
            chat: is it a conversation? Then a reply ends where a plain template's next turn begins.
            stop_ids: tokens that end the text besides the model's own.
            kept: special tokens that are a part of the text.
            streams: are steps wanted?

        Raises:
            RoomError: the prompt and the least of its reply are too long.
            UsageError: a value has no sense here, or the model is closed."""
        params = self._resolved(ids, params, chat=chat)
        stops = plain_stops(self.tokenizer) if chat else ()
        reply = TextStream(self.tokenizer, (*params.stop, *stops), ids, params.min_tokens, kept)
        own = (frozenset() if params.ignore_eos else self.stop_ids) | frozenset(stop_ids)
        if params.min_tokens and len(own.intersection(range(self.vocabulary))) == self.vocabulary:
            raise UsageError("min_tokens must be 0 where every token ends the text: no token could be chosen.")
        grammar = self._grammar(params, own)
        stopping = reply.feed if grammar is None else partial(_ends, reply, grammar)
        sequence = TokenSequence(
            row=-1,
            tokens=ids,
            params=params,
            stop_ids=own,
            stops=stopping if self.readable >= self.vocabulary else partial(_leaves, stopping, self.readable),
            grammar=grammar,
            reasoning=self._reasoning(params.reasoning_budget, ids),
            limit=min(params.max_new_tokens, self.room.context - len(ids)),
            # Logits after each token of the prompt can only be had by reading it.
            reusable=None if params.prompt_logprobs is None else 0,
        )
        seed = params.seed if params.temperature > 0 else None
        meter = RequestMeter(self.model, self.method, len(ids), seed)
        return Request(sequence, reply, meter, streams)

    def _grammar(self, params: SamplingParams, stops: frozenset[int]) -> GrammarState | None:
        """What the text must be, if `params` say so. `stops`: all tokens that end it, those that a caller named too."""
        if params.constraint is None:
            return None
        return self.grammars.state(params.constraint, stops & self.stop_ids, stops)

    def _reasoning(self, budget: ReasoningBudget | None, ids: Sequence[int]) -> ReasoningState | None:
        """Where a text after the prompt `ids` stands in `budget`. Raises UsageError as `_closing` does."""
        if budget is None:
            return None
        begun = begins(budget, b"".join(map(self.texts.data, ids))) if budget.begun is None else budget.begun
        return ReasoningState(budget, self._closing(budget), self.texts.data, begun)

    def _closing(self, budget: ReasoningBudget) -> list[int]:
        """The tokens that write the mark that ends a reasoning. UsageError where none do."""
        closing = encode(self.tokenizer, budget.closed, add_special_tokens=False)
        check_closing(budget, [self.texts.data(token) for token in closing])
        return closing

    def _resolved(self, ids: Sequence[int], params: SamplingParams, *, chat: bool = False) -> SamplingParams:
        """`params` with every value given, for a prompt of `ids`. UsageError where it cannot be continued."""
        if not isinstance(params, SamplingParams):
            raise UsageError(f"params must be SamplingParams, or a list of those, got {params!r}.")
        if not self.closing.alive:
            raise UsageError(CLOSED)
        found = self.generation.resolved(params, len(ids))
        self.room.check(len(ids), found, chat=chat)
        check_biases(found, self.vocabulary)
        if found.constraint is not None:
            self.grammars.check(found.constraint)
        if found.reasoning_budget is not None:
            self._closing(found.reasoning_budget)
        return found


def _leaves(stops: Callable[[int], bool], readable: int, token: int) -> bool:
    """Take the next token of a text: does the text end with it, or is it none that could be read on from?"""
    return stops(token) or token >= readable


def _ends(reply: TextStream, grammar: GrammarState, token: int) -> bool:
    """Take the next token of a text: does the text end with it?"""
    complete = grammar.take(token)
    return reply.feed(token) or complete
