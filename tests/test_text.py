"""Streamed text is the whole text: no character comes in halves, and nothing of a stop text is shown and taken back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_detokenizer import MADE, expected
from tests.tiny import byte_tokenizer
from understudy.text import TextStream

TOKENIZER = byte_tokenizer()


def ids(text: str | bytes) -> list[int]:
    """One token for each byte."""
    letters = TOKENIZER.get_vocab()
    data = text.encode() if isinstance(text, str) else text
    return [letters[letter_of(byte)] for byte in data]


def letter_of(byte: int) -> str:
    """How byte-level tokenizers write a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in plain else chr(256 + sum(other not in plain for other in range(byte)))


def streamed(reply: TextStream, tokens: list[int]) -> list[str]:
    """What was given out after each token, until a stop text came."""
    pieces = []
    for place, token in enumerate(tokens):
        stopped = reply.feed(token)
        pieces.append(reply.take(final=stopped or place == len(tokens) - 1))
        if stopped:
            break
    return pieces


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=5))
def test_text_comes_whole_and_in_whole_characters(text: str, prompt: str) -> None:
    pieces = streamed(TextStream(TOKENIZER, prompt=ids(prompt)), ids(text))
    assert "".join(pieces) == text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_never_stop_it(data: bytes) -> None:
    text = "".join(streamed(TextStream(TOKENIZER), ids(data)))
    assert TOKENIZER.decode(ids(data)) == text


@settings(max_examples=200, deadline=None)
@given(st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_text_ends_it_and_is_never_shown(text: str, stops: list[str]) -> None:
    reply = TextStream(TOKENIZER, stops)
    pieces = streamed(reply, ids(text))
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert not reply.stopped and "".join(pieces) == text
        return
    first = min(text.find(stop) for stop in stops if stop in text[: ends[0]])
    assert reply.stopped and "".join(pieces) == text[:first] == reply.text
    assert len(pieces) == ends[0]


FALLBACK = MADE["fallback, stripped"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stop_texts_are_found_in_whatever_pieces_they_come(data: st.DataObject) -> None:
    """Byte tokens, words and special tokens, taken in steps of any length."""
    token = st.integers(0, len(FALLBACK) - 1)
    prompt, tokens = data.draw(st.lists(token, max_size=5)), data.draw(st.lists(token, max_size=30))
    stops = data.draw(st.lists(st.sampled_from(["\n", "é", "é\n", " the", "n't", "€a", "  ", "'s.", "\ufffd"]), max_size=3))
    reply, given = TextStream(FALLBACK, stops, prompt), ""
    texts = [expected(FALLBACK, prompt, tokens[:count]) for count in range(len(tokens) + 1)]
    for count, token in enumerate(tokens, 1):
        stopped = reply.feed(token)
        assert stopped == any(stop in texts[count] for stop in stops), "the first token that completes one ends it"
        if stopped or data.draw(st.booleans()):
            given += reply.take()
        if stopped:
            break
    given += reply.take(final=True)
    whole = texts[count] if tokens else ""
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert given == reply.text == (whole[: min(ends)] if ends else whole)
    assert reply.take(final=True) == ""


def test_a_stop_text_in_a_long_run_of_bytes_is_cut_off_at_the_end() -> None:
    newline, letter = FALLBACK.convert_tokens_to_ids(["<0x0A>", "<0x41>"])
    reply = TextStream(FALLBACK, ["\n\n"])
    tokens = [letter] * 40 + [newline, newline, letter]
    assert [reply.feed(token) for token in tokens] == [False] * 43
    assert reply.take() == "" and reply.take(final=True) == "A" * 40 and reply.stopped


@settings(max_examples=100, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 9))
def test_a_stop_text_within_the_first_tokens_does_not_count(text: str, stops: list[str], least: int) -> None:
    expected = text
    for end in range(least + 1, len(text) + 1):
        if places := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            expected = text[: min(places)]
            break
    reply = TextStream(TOKENIZER, stops, least=least)
    streamed(reply, ids(text))
    assert reply.text == expected
    assert reply.stopped == (expected != text)
