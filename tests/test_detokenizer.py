"""Whatever the tokens are, the pieces joined are the decoded whole, and what was given out is never taken back."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer
from understudy.detokenizer import LONG, Detokenizer, Traits

BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0x20, 0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
WORDS = ["▁", "▁▁▁", "▁the", "a", "é", "n't", ".", "'s", "'", "n", "t", "▁n", "▁'", " .", "\ufffd", "##x", "||", "<0x>", "<0xG1>"]
LETTERS = ["Ġ", "ĠĠ", "a", "Ã", "©", "Ã©", "â", "Ĥ", "¬", "ðŁ", "ĺ", "Ģ", "ÿ", "Ċ", "Ġ.", "Ġ'", "n", "Ġn", "t", "日本"]


class Shouting(PreTrainedTokenizerFast):
    """A class with a text of its own."""

    def clean_up_tokenization(self, text: str) -> str:
        return text.upper()


def tokenizer(
    words: list[str], decoder: Any, model: Any = None, kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **options: Any
) -> PreTrainedTokenizerFast:
    """Every word one token; then two special tokens and two added ones that are none."""
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer((model or models.BPE)(vocabulary, **({} if model else {"merges": []})))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|end|>", special=True)])
    backend.add_tokens([AddedToken("<added>"), AddedToken("  two words é ")])
    return kind(tokenizer_object=backend, **options)


def chain(*steps: Any) -> Any:
    return decoders.Sequence(list(steps))


def fallback(*more: Any) -> Any:
    """As in Gemma; as in Llama 2 and Mistral with a strip of one space."""
    return chain(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more)


FORCED = {"clean_up_tokenization_spaces": True, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "byte level": lambda: tokenizer(LETTERS, decoders.ByteLevel()),
    "byte level, tidied": lambda: tokenizer(LETTERS, decoders.ByteLevel(), **FORCED),
    "byte level, said to be tidied": lambda: tokenizer(LETTERS, decoders.ByteLevel(), clean_up_tokenization_spaces=True),
    "metaspace": lambda: tokenizer(WORDS, decoders.Metaspace()),
    "metaspace, tidied": lambda: tokenizer(WORDS, decoders.Metaspace(), models.WordLevel, clean_up_tokenization_spaces=True),
    "metaspace, never first": lambda: tokenizer(WORDS, decoders.Metaspace(prepend_scheme="never")),
    "fallback": lambda: tokenizer(BYTES + WORDS, fallback()),
    "fallback, stripped": lambda: tokenizer(BYTES + WORDS, fallback(decoders.Strip(" ", 1, 0))),
    "fallback, stripped more": lambda: tokenizer(BYTES + WORDS, fallback(decoders.Strip(" ", 3, 0))),
    "fallback, tidied": lambda: tokenizer(BYTES + WORDS, fallback(decoders.Strip(" ", 1, 0)), **FORCED),
    "fallback and metaspace": lambda: tokenizer(BYTES + WORDS, chain(decoders.ByteFallback(), decoders.Metaspace())),
    "metaspace before fallback": lambda: tokenizer(BYTES + WORDS, chain(decoders.Metaspace(), decoders.ByteFallback())),
    "word pieces": lambda: tokenizer(WORDS, decoders.WordPiece(), models.WordLevel),
    "ends of words": lambda: tokenizer([*WORDS, "a</w>", "</w>b</w>", "</w>"], decoders.BPEDecoder()),
    "ends of words, tidied": lambda: tokenizer([*WORDS, "a</w>", "'</w>", "</w>b</w>"], decoders.BPEDecoder(), **FORCED),
    "connectionist": lambda: tokenizer([*WORDS, "<pad>", "|"], decoders.CTC()),
    "no decoder": lambda: tokenizer(WORDS, None, models.WordLevel),
    "no decoder, tidied": lambda: tokenizer(WORDS, None, models.WordLevel, clean_up_tokenization_spaces=True),
    "a class of its own": lambda: tokenizer(LETTERS, decoders.ByteLevel(), kind=Shouting, **FORCED),
    "replaced at the end": lambda: tokenizer(LETTERS, chain(decoders.ByteLevel(), decoders.Replace("aa", "b"))),
}
MADE = {name: make() for name, make in TOKENIZERS.items()}
LATE = {"metaspace before fallback", "a class of its own", "replaced at the end"}


def expected(tokenizer: Any, prompt: list[int], reply: list[int]) -> str:
    """What decoding both together adds to the decoded prompt."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + reply, skip_special_tokens=True)
    while not whole.startswith(before):
        before = before[:-1]
    return str(whole[len(before) :])


def check(tokenizer: Any, prompt: list[int], reply: list[int]) -> None:
    text, whole = Detokenizer(tokenizer, prompt), expected(tokenizer, prompt, reply)
    given = ""
    for count, token in enumerate(reply, 1):
        given += text.add(token)
        assert whole.startswith(given), (prompt, reply[:count], given, whole)
        if count < 20:
            assert given + text.tail() == expected(tokenizer, prompt, reply[:count])
    assert given + text.finish() == whole
    assert text.finish() == ""


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_joined_are_the_decoded_whole(name: str, data: st.DataObject) -> None:
    tokenizer = MADE[name]
    token = st.integers(0, len(tokenizer) + 1)  # two that it does not know
    check(tokenizer, [], data.draw(st.lists(token, max_size=40)))
    check(tokenizer, data.draw(st.lists(token, max_size=40)), data.draw(st.lists(token, max_size=12)))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=10, deadline=None)
@given(seed=st.randoms(use_true_random=False), few=st.booleans())
@example(seed=None, few=True)
def test_long_texts_are_decoded_in_windows(name: str, seed: Any, few: bool) -> None:
    """A few kinds of tokens only, so that long runs of a kind come."""
    tokenizer = MADE[name]
    kinds = range(len(tokenizer)) if seed is None or not few else seed.choices(range(len(tokenizer)), k=3)
    tokens = [kinds[place % len(kinds)] for place in range(500)] if seed is None else seed.choices(kinds, k=500)
    check(tokenizer, tokens[:200], tokens[200:])


@pytest.mark.parametrize("before", [0, 1, 2, 3])
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_long_run_of_what_is_tidied_is_tidied_from_its_beginning(before: int, beyond: int) -> None:
    """Of spaces and apostrophes in turn, which spaces stay depends on where they begin: no window may begin in between."""
    tokenizer = MADE["byte level, tidied"]
    letter, quote = LETTERS.index("a"), LETTERS.index("Ġ'")
    run = [letter] * before + [quote] * (150 + beyond)
    check(tokenizer, run[:120], run[120:] + [letter] * 9)
    check(tokenizer, [], run)
    check(tokenizer, [letter] * 300, [quote, letter] * 90)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_time_is_linear(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tokens that are decoded."""
    tokenizer = MADE[name]
    decoded: list[int] = []
    decode = Detokenizer._decode

    def counting(self: Detokenizer, tokens: list[int]) -> str:
        decoded.append(len(tokens))
        return decode(self, tokens)

    monkeypatch.setattr(Detokenizer, "_decode", counting)
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("▁the", "a", "<0xC3>", "<0xA9>", "é", "Ġ", "Ã", "©")]
    tokens = [word for word in words if word is not None] * 500
    text = Detokenizer(tokenizer)
    given = "".join(text.add(token) for token in tokens)
    assert sum(decoded) < 2 * LONG * len(tokens) or name in LATE
    assert Traits.of(tokenizer).unknown == (name in LATE) and bool(given) != (name in LATE)
    assert given + text.finish() == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("run", [["<0xC3>", "<0xA9>"], ["<0xFF>"]], ids=["valid", "invalid"])
def test_a_run_of_byte_tokens_is_decoded_once_it_ends(run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = MADE["fallback"]
    run_ids, (letter,) = tokenizer.convert_tokens_to_ids(run), tokenizer.convert_tokens_to_ids(["a"])
    text = Detokenizer(tokenizer)
    assert "".join(text.add(token) for token in run_ids * 1000) == ""
    assert sum(bool(text.add(token) or text.tail()) for token in run_ids * 500) <= 2, "of a long run only now and then"
    assert text.add(letter) == tokenizer.decode([*run_ids * 1500, letter])


def test_a_reply_keeps_the_space_it_begins_with() -> None:
    tokenizer = MADE["fallback, stripped"]
    the, letter = tokenizer.convert_tokens_to_ids(["▁the", "a"])
    assert Detokenizer(tokenizer, [letter]).add(the) == " the"
    assert Detokenizer(tokenizer).add(the) == "the"


def test_a_character_that_the_prompt_begins_is_the_replys() -> None:
    tokenizer = MADE["byte level"]
    first, second, letter = tokenizer.convert_tokens_to_ids(["Ã", "©", "a"])
    text = Detokenizer(tokenizer, [letter, first])
    assert text.add(second) == "é" and text.finish() == ""
