"""Single tokens as bytes and as text. A token may be a part of a character: its bytes say what its text cannot."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from .detokenizer import BYTE

# How SentencePiece writes a space.
SPACE = "\u2581"


class TokenTexts:
    """The bytes and texts of the tokens of one tokenizer, each worked out once."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    @cached_property
    def special(self) -> set[int]:
        """Tokens that are left out of a reply's text."""
        return {id for id, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def _added(self) -> dict[int, str]:
        return {id: token.content for id, token in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def _letters(self) -> dict[str, int]:
        """The bytes by the letters that stand for them; empty where none do."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        return {letter: byte for byte, letter in letters.items()} if "ByteLevel" in self._state else {}

    @cached_property
    def _state(self) -> str:
        """What the tokenizer's decoder does, in JSON."""
        decoder = self._backend.decoder
        return "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False)

    @property
    def _backend(self) -> Any:
        return self._tokenizer._tokenizer

    def data(self, token: int) -> bytes:
        """The bytes that `token` stands for; those of a special token are its name."""
        if token not in self._known:
            self._known[token] = self._data(token)
        return self._known[token]

    def text(self, token: int) -> str:
        """What `token` reads as, a sign for lost characters in place of parts of one."""
        return self.data(token).decode("utf-8", errors="replace")

    def name(self, token: int) -> str:
        """A text that tells `token` from others: where it is no whole characters, `bytes:` and its bytes, as OpenAI wrote them."""
        data = self.data(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _data(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece: str | None = self._backend.id_to_token(token)
        if piece is None:
            # Models have more ids than their tokenizers know.
            return b""
        if self._letters and all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        if BYTE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        if SPACE in self._state:
            return piece.replace(SPACE, " ").encode()
        return str(self._tokenizer.decode([token])).encode()
