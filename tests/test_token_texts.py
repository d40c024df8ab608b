"""Bytes of single tokens, joined, are the text; offsets say where each begins in it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer
from understudy.api.forms import Said
from understudy.api.text_form import OldLogprobs
from understudy.logprobs import TokenLogprob
from understudy.token_texts import TokenTexts


def sentence_pieces() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcé", "\u2581ab"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, [("\u2581", "a"), ("\u2581a", "b")][:0], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer(), "sentence pieces": sentence_pieces()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text("ab cé€😀", min_size=1, max_size=12))
@settings(max_examples=60)
def test_joined_bytes_are_the_text_and_offsets_point_into_it(name: str, text: str) -> None:
    tokenizer: Any = TOKENIZERS[name]
    texts = TokenTexts(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    data = b"".join(texts.data(token) for token in ids)
    assert data.decode().removeprefix(" " if name == "sentence pieces" else "") == whole
    found = [TokenLogprob(token, -1.0, ((token, -1.0),)) for token in ids]
    told = OldLogprobs(texts, ids, whole).told(Said(logprobs=found, prompt_logprobs=found[1:]))
    assert told is not None and len(told["tokens"]) == 2 * len(ids)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None and told["text_offset"][0] == 0
    for i, offset in enumerate(told["text_offset"][: len(ids)]):
        rest = b"".join(texts.data(token) for token in ids[i:])
        while rest and rest[0] & 0xC0 == 0x80:  # in the middle of a character, whose beginning counts
            rest = rest[1:]
            offset += rest[:1] != b"" and rest[0] & 0xC0 != 0x80
        assert not rest or whole[offset:] == rest.decode().removeprefix(" " if i == 0 and name == "sentence pieces" else "")
    assert told["text_offset"][len(ids)] >= len(whole)


def test_parts_of_characters_are_told_apart() -> None:
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer)
    first, second, third = tokenizer("€", add_special_tokens=False)["input_ids"]
    assert [texts.data(token) for token in (first, second, third)] == [b"\xe2", b"\x82", b"\xac"]
    assert texts.text(first) == "\ufffd" and texts.name(first) == "bytes:\\xe2" != texts.name(second)
    assert texts.data(99_999) == b"", "an id that the tokenizer does not know"
    assert TokenTexts(sentence_pieces()).data(1) == b"<s>"


def test_what_cannot_be_has_a_number() -> None:
    texts = TokenTexts(byte_tokenizer())
    told = OldLogprobs(texts).told(Said(logprobs=[TokenLogprob(3, -float("inf"), ((4, -0.5),))]))
    assert told is not None and told["token_logprobs"] == [-9999.0]
    assert told["top_logprobs"] == [{texts.name(4): -0.5, texts.name(3): -9999.0}]
    assert OldLogprobs(texts).told(Said("abc")) is None
