"""Tokens to text, one by one: every piece is final when it is given out, and all pieces joined are the decoded whole.

The text of a token may depend on what follows: bytes of half a character, or a run of byte tokens, which becomes text only if
all of it is valid. What such a decoder may still change is held back. Whatever is given out is what the tokenizer itself
decodes from a window of the last tokens, so the time is linear in the tokens. A decoder that is not known here gives its text
at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

# Tokens of a window before it is shortened, and tokens that stay then.
LONG = 64
SHORT = 32
# Characters before the end of what was given out that a shortened window must decode to as well.
CONTEXT = 8
# Byte tokens in a row that are decoded with each new one; beyond, when their number is a power of two.
RUN = 32
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
LOST = "\ufffd"


@dataclass(frozen=True)
class Traits:
    """What a tokenizer's decoder does to the text of earlier tokens when more tokens follow."""

    # Bytes of one character may come in two tokens: the last character may be the sign for a half one.
    halves: bool = False
    # A run of byte tokens becomes text only as a whole.
    runs: bool = False
    # The last token is decoded in another way than the others.
    last: bool = False
    # Spaces before punctuation are taken out of the text at the end.
    tidied: bool = False
    # The decoder is not known: nothing is final before the end.
    unknown: bool = False

    @classmethod
    def of(cls, tokenizer: Any) -> Traits:
        """The traits of a transformers tokenizer that is built on `tokenizers`."""
        from transformers import PreTrainedTokenizerFast as Fast

        kind = type(tokenizer)
        if kind._decode is not Fast._decode or kind.clean_up_tokenization is not Fast.clean_up_tokenization:
            return cls(unknown=True)
        tidied = bool(tokenizer.clean_up_tokenization_spaces)
        if type(tokenizer._tokenizer.model).__name__ == "BPE":
            tidied &= bool(getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False))
        decoder = tokenizer._tokenizer.decoder
        steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
        kinds = [step["type"] for step in steps]
        # After these, the text is one piece, which only a strip at its beginning takes as it comes.
        whole = next((place for place, name in enumerate(kinds) if name in ("Fuse", "ByteLevel")), len(kinds))
        # Before byte tokens are looked for, only single characters may have been replaced in them.
        bytes_at = kinds.index("ByteFallback") if "ByteFallback" in kinds else 0
        known = (
            set(kinds[:whole]) <= {"ByteFallback", "Replace", "Metaspace", "WordPiece", "BPEDecoder", "CTC", "Strip"}
            and set(kinds[whole + 1 :]) <= {"Fuse", "Strip"}
            and set(kinds[:bytes_at]) <= {"Replace"}
            and not any(step.get("stop") for step in steps)
        )
        return cls("ByteLevel" in kinds, "ByteFallback" in kinds, "BPEDecoder" in kinds, tidied, not known)


class Detokenizer:
    """The text of a reply: what decoding the prompt and the reply together adds to the decoded prompt, special tokens left out.

    So a reply that goes on in the middle of a line keeps the space it begins with. Without a prompt, it is the decoded reply.
    Special tokens in `kept` are written out; each ends the text before it."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = (), kept: Collection[int] = ()):
        self._tokenizer = tokenizer
        self._backend = tokenizer._tokenizer
        self._traits = Traits.of(tokenizer)
        added = self._backend.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self._kept = {id: str(added[id].content) for id in kept}
        # The last tokens, those without a text left out.
        self._window = self._end_of([token for token in prompt if self._visible(token)])
        # What the prompt's tokens in the window decode to, until the first text of the reply is given out.
        self._before: str | None = self._decode(self._window)
        # The decoded window, where it was decoded since its last token came.
        self._whole: str | None = self._before
        # Characters of the decoded window that were given out, or were there before.
        self._given = 0
        # Byte tokens at the end of the window, or all tokens where the decoder is not known.
        self._held = 0
        self._limit = LONG

    def add(self, token: int) -> str:
        """Take the next token. Returns the text that became final with it."""
        if token in self._kept:
            return self.finish() + self._kept[token]
        if not self._visible(token):
            return ""
        self._window.append(token)
        if self._traits.unknown or (self._traits.runs and self._is_byte(token)):
            self._held += 1
            self._whole = None
            return ""
        self._held = 0
        whole = self._whole = self._decode(self._window)
        final = self._final(whole)
        start = self._start(whole)
        if final <= start:
            return ""
        self._before = None
        self._given = final
        self._shorten(whole)
        return whole[start:final]

    def tail(self) -> str:
        """The text after the final one, as it would be if no token followed. Where more than RUN tokens are held back, it is
        decoded only when their number is a power of two, and is "" otherwise."""
        if self._held > RUN and self._held & (self._held - 1):
            return ""
        whole = self._whole = self._decode(self._window) if self._whole is None else self._whole
        return whole[self._start(whole) :]

    def finish(self) -> str:
        """The text after the last final one. Tokens that follow do not change it."""
        whole = self._decode(self._window)
        start = self._start(whole)
        self._before = None
        self._given = len(whole)
        self._held = 0
        return whole[start:]

    def _start(self, whole: str) -> int:
        """Where in the decoded window the text begins that was not given out yet."""
        return self._given if self._before is None else _shared(self._before, whole)

    def _final(self, whole: str) -> int:
        """How many characters of the decoded window stay, whatever tokens follow."""
        if self._traits.tidied:
            text = self._untidied(self._window)
            return len(self._tokenizer.clean_up_tokenization(text[: _tidy_place(text[: self._settled(text)])]))
        return self._settled(whole)

    def _settled(self, text: str) -> int:
        """How many characters of the window's `text`, as the decoder gives it, stay whatever tokens follow."""
        if self._traits.last:
            text = text[: _shared(text, self._untidied([*self._window, self._window[-1]]))]
        return len(text) - (self._traits.halves and text.endswith(LOST))

    def _shorten(self, whole: str) -> None:
        """Leave out the beginning of a long window, if what remains decodes to the same end."""
        if len(self._window) < self._limit:
            return
        for place in range(len(self._window) - SHORT, 0, -1):
            if not (self._traits.runs and self._is_byte(self._window[place])):
                break
        else:
            place = 0
        shorter = self._decode(self._window[place:])
        given = self._given - len(whole) + len(shorter)
        stays = place and given >= CONTEXT and self._alone(self._window[place:])
        if stays and shorter[given - CONTEXT :] == whole[self._given - CONTEXT :]:
            self._window = self._window[place:]
            self._whole = shorter
            self._given = given
            self._limit = LONG
        else:
            self._limit = 2 * len(self._window)

    def _end_of(self, prompt: list[int]) -> list[int]:
        """The end of a prompt that decides how its continuation is decoded."""
        size = SHORT
        while size < len(prompt) and not self._traits.unknown:
            end = prompt[-size:]
            whole = not (self._traits.runs and self._is_byte(end[0]))
            if whole and len(self._decode(end)) >= CONTEXT and self._alone(end):
                return end
            size *= 2
        return prompt

    def _alone(self, tokens: list[int]) -> bool:
        """Whether the end of the text of `tokens` is tidied as it is after any others: what is tidied away of a run of spaces and
        apostrophes depends on where the run begins."""
        if not self._traits.tidied:
            return True
        return _tidy_place(self._untidied(tokens)[:-CONTEXT]) > 0

    def _decode(self, tokens: list[int]) -> str:
        if self._traits.tidied or self._traits.unknown:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        return self._untidied(tokens)

    def _untidied(self, tokens: list[int]) -> str:
        """The text of `tokens` as the decoder gives it."""
        return str(self._backend.decode(tokens, skip_special_tokens=True))

    def _visible(self, token: int) -> bool:
        """Whether a token can have a text: it is not special, and the tokenizer knows it."""
        return token not in self._special and self._backend.id_to_token(token) is not None

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(self._backend.id_to_token(token)) is not None


def _shared(first: str, second: str) -> int:
    """How many characters two texts share from their start."""
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoders in a sequence of decoders, in order."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _tidy_place(text: str) -> int:
    """The last place of `text` that nothing which is tidied away can cross.

    What is tidied begins with a space and goes on for three characters at most, in which other spaces may have been removed; the
    one letter that may stand before a removed space is an n."""
    for place in range(len(text), 0, -1):
        ends_word = place < len(text) and text[place] == " " and text[place - 1].isalnum() and text[place - 1] != "n"
        if ends_word or (place >= 3 and " " not in text[place - 3 : place]):
            return place
    return 0
