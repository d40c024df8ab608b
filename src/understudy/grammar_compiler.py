"""Constraints to grammars of one model's tokens, by llguidance, which is imported for the first of them.

Whoever may send a schema may send a hostile one: they are compiled in a thread of their own, one after the other, within limits of
size and time, and what each costs at a token has limits too. The bytes of tokens are what this package says they are
(`token_texts.py`), so what a grammar sees is the text that a caller gets, whatever the kind of tokenizer."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from contextlib import suppress
from typing import Any

from .chat_template import encode
from .constraint import GRAMMAR, JSON_SCHEMA, REGEX, Constraint
from .errors import UsageError, quoted
from .grammar import GrammarState
from .plan.grammars import KEPT
from .token_texts import TokenTexts

# Constraints of which it is kept whether they can be used, those looked at last.
JUDGED = 1024
# Seconds that a caller waits for a grammar, those before it included.
PATIENCE = 10.0
# Symbols of a grammar, and states of its lexer (1 to 2 KB each).
MOST_SYMBOLS = 200_000
MOST_STATES = 30_000
# What may stand between two parts of JSON: a space, or a line break and an indentation. More would be valid, and a small model may
# write nothing else for ever (llama.cpp's grammar of JSON has the same).
SPACE = r"\x20|\x0A[\x20\x09]{0,20}"
# Tokens that are decoded together to see what a tokenizer does to them.
SAMPLE = 200
# What llguidance calls a grammar in which nothing can be written, or that is too large; in words.
REASONS = {
    "NoExtension": "nothing can be written that fits it",
    "TooComplex": "it is too complex",
    "fuel exhausted": "it is too complex",
    "too large": "it is too large",
}


class TokenBytes:
    """The vocabulary as llguidance asks for it, and as token number `size` one that ends a text: to llguidance those of the model
    mean nothing."""

    def __init__(self, tokenizer: Any, size: int):
        texts = TokenTexts(tokenizer)
        self._tokenizer = tokenizer
        data = [texts.data(token) for token in range(size)]
        # No text has this byte, and llguidance marks special tokens by it.
        self.tokens = [b"" if b"\xff" in piece else piece for piece in data] + [b"<end>"]
        self.eos_token_id = size
        self.bos_token_id = None
        self.special_token_ids = sorted(texts.special | {token for token in range(size) if not self.tokens[token]} | {size})

    def __call__(self, text: str | bytes) -> list[int]:
        decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
        return encode(self._tokenizer, decoded, add_special_tokens=False)


def untold(seconds: float, refused: bool) -> None:
    """Who hears of grammars that nobody counts."""


class GrammarCompiler:
    """Compiles constraints for a model with `tokenizer`, whose logits have `vocabulary` tokens. May be asked from any thread.

    `tell` hears of each that was compiled or could not be: the seconds, and whether it was refused. Called in any thread."""

    tell: Callable[[float, bool], None] = staticmethod(untold)

    def __init__(self, tokenizer: Any, vocabulary: int):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        # llguidance's view of the tokenizer, made for the first constraint.
        self._tokens: Any = None
        # Matchers that have read nothing, the KEPT used last; they are copied for each text.
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        # By a digest of a constraint why it cannot be used, without its name; empty: it can.
        self._judged: OrderedDict[bytes, str] = OrderedDict()
        self._guard = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "understudy-grammar")

    def warm(self) -> None:
        """Make what every constraint needs. Other threads wait meanwhile, up to a second with a large vocabulary, so a server does
        it before it has clients. Where it cannot be made, the first constraint tells why."""
        with suppress(UsageError):
            self._worker.submit(self._prepare, "").result()

    def check(self, constraint: Constraint) -> None:
        """Compile `constraint`, if that was not done yet. UsageError, which begins with its name, where it cannot be used."""
        self._matcher(constraint)

    def trouble(self, constraint: Constraint) -> str:
        """Why `constraint` cannot be used, as `check` would say it; empty: it can. Its grammar is not kept."""
        key = hashlib.sha256(repr((constraint.kind, constraint.text, constraint.around)).encode()).digest()
        with self._guard:
            known = self._judged.get(key)
        if known is None:
            known = self._looked_at(constraint)
        with self._guard:
            self._judged[key] = known
            self._judged.move_to_end(key)
            if len(self._judged) > JUDGED:
                self._judged.popitem(last=False)
        return f"{constraint.name} {known}" if known else ""

    def _looked_at(self, constraint: Constraint) -> str:
        """What keeps `constraint` from being compiled, without its name; empty: nothing does."""
        try:
            self._by_worker(constraint)
        except UsageError as error:
            return str(error).removeprefix(f"{constraint.name} ")
        return ""

    def state(self, constraint: Constraint, ends: Collection[int], stops: Collection[int] = ()) -> GrammarState:
        """The state of an empty text, for a `GrammarState` with these `ends` and `stops`. Raises UsageError as `check` does."""
        return GrammarState(self._matcher(constraint).deep_copy(), self._vocabulary, ends, stops)

    def _matcher(self, constraint: Constraint) -> Any:
        with self._guard:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
                return self._compiled[constraint]
        found = self._by_worker(constraint)
        with self._guard:
            self._compiled[constraint] = found
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return found

    def _by_worker(self, constraint: Constraint) -> Any:
        """`_compile`, in the thread that does it. UsageError where that takes too long."""
        start = time.perf_counter()
        work = self._worker.submit(self._compile, constraint)
        refused = True
        try:
            found = work.result(PATIENCE)
            refused = False
            return found
        except TooLate:
            work.cancel()
            raise UsageError(f"{constraint.name} was not compiled within {PATIENCE:g} s: make it simpler.") from None
        finally:
            self.tell(time.perf_counter() - start, refused)

    def _prepare(self, name: str) -> None:
        """Make llguidance's view of the tokenizer, for the constraint `name`. UsageError where that cannot be."""
        _library(name)
        if self._tokens is None:
            self._tokens = _tokens_of(self._tokenizer, self._vocabulary, name)

    def _compile(self, constraint: Constraint) -> Any:
        """A matcher that has read nothing. UsageError where no text of this model's tokens fits the constraint."""
        matching = _library(constraint.name).LLMatcher
        self._prepare(constraint.name)
        with quoted(UsageError, f"{constraint.name} cannot be used", "Mend it, or leave it out."):
            matcher = matching(self._tokens, _source(constraint), log_level=0, limits=_limits())
            # Work that is put off until the first mask belongs to the check.
            state = GrammarState(matcher, self._vocabulary, ())
            writes = state.allowed(()).any()
        if error := matcher.get_error():
            raise UsageError(f"{constraint.name} cannot be used: {_reason(error)}.")
        if not writes:
            raise UsageError(f"{constraint.name} cannot be used: no token of this model can begin a text that fits it.")
        return matcher


def check_alone(constraint: Constraint) -> None:
    """What can be said of `constraint` before there is a tokenizer. Raises UsageError as `GrammarCompiler.check` does."""
    matching = _library(constraint.name).LLMatcher
    with quoted(UsageError, f"{constraint.name} cannot be used", "Mend it, or leave it out."):
        error = matching.validate_grammar(_source(constraint), limits=_limits())
    if error:
        raise UsageError(f"{constraint.name} cannot be used: {_reason(error)}.")


def _library(name: str) -> Any:
    """llguidance. UsageError, about the constraint `name`, where it is not installed."""
    try:
        import llguidance
    except ImportError:
        what = f"{name} needs llguidance, which is not installed"
        raise UsageError(f"{what}: pip install 'understudy[schema]'.") from None
    return llguidance


def _limits() -> Any:
    """What a grammar may take to compile, and at each token."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MOST_STATES, max_grammar_size=MOST_SYMBOLS, verbose_errors=False)


def _source(constraint: Constraint) -> str:
    """`constraint` as llguidance reads it, with what stands around it. ValueError for a grammar in neither of its forms."""
    own = _own_source(constraint)
    if not constraint.around:
        return own
    # Grammars that may use one another are written in JSON, where those of schemas are already.
    grammars = json.loads(own)["grammars"] if constraint.kind != GRAMMAR else [{"lark_grammar": own}]
    whole = {"lark_grammar": constraint.around}
    return json.dumps({"grammars": [whole, {**grammars[0], "name": "form"}]}, ensure_ascii=False)


def _own_source(constraint: Constraint) -> str:
    """`constraint` alone, as llguidance reads it."""
    from llguidance import LLMatcher, grammar_from

    if constraint.kind == JSON_SCHEMA:
        return LLMatcher.grammar_from_json_schema(constraint.text, defaults={"whitespace_pattern": SPACE})
    if constraint.kind == REGEX:
        return LLMatcher.grammar_from_regex(constraint.text)
    return grammar_from("grammar", constraint.text)


def _reason(error: str) -> str:
    """The line of llguidance's error that says most, in plain words where it has none."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    for name, words in REASONS.items():
        if name in lines[0]:
            return words
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return said[:160].rstrip(". :")


def _tokens_of(tokenizer: Any, vocabulary: int, name: str) -> Any:
    """The tokens of `tokenizer`, and of a model with `vocabulary` tokens, for llguidance.

    UsageError, about the constraint `name`, where a text is not the bytes of its tokens, joined."""
    from llguidance import LLTokenizer, TokenizerWrapper

    # A model may know more tokens than its tokenizer, or fewer.
    found = TokenBytes(tokenizer, max(vocabulary, len(tokenizer)))
    if not _joins(tokenizer, found.tokens, set(found.special_token_ids)):
        raise UsageError(f"{name} cannot be used: this model's tokenizer changes texts as it joins their tokens.")
    return LLTokenizer(TokenizerWrapper(found))


def _joins(tokenizer: Any, data: Sequence[bytes], special: Collection[int]) -> bool:
    """Whether decoded tokens are their bytes, joined, but for spaces before the first of them."""
    whole = [token for token, piece in enumerate(data) if token not in special and piece.isascii()]
    sample = whole[:: max(len(whole) // SAMPLE, 1)]
    joined = b"".join(data[token] for token in sample).decode()
    return bool(sample) and str(tokenizer.decode(sample)).lstrip(" ") == joined.lstrip(" ")
