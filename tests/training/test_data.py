"""Files of texts and conversations as tokens, and what of them is learned and measured with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from understudy.errors import UsageError
from understudy.training.answers import PromptReader
from understudy.training.data import HELD_OUT, Pieces, TextReader, cut

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}.{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CHAT = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"}, {"role": "assistant", "content": "four"},
]  # fmt: skip


def tokenizer(template: str | None = TEMPLATE) -> Any:
    found = byte_tokenizer()
    found.chat_template = template
    return found


def written(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def said(pieces: Pieces, mine: Any) -> list[tuple[str, str]]:
    """Of each piece its text, and that of the tokens to be guessed."""
    parts = [pieces.part(piece) for piece in range(len(pieces))]
    return [(mine.decode(pieces.tokens[part]), mine.decode(pieces.tokens[part][pieces.counted[part]])) for part in parts]


@pytest.mark.parametrize("record", [{"messages": CHAT}, {"prompt": CHAT[:1], "completion": CHAT[1:]}])
def test_only_what_the_assistant_says_is_to_be_guessed(tmp_path: Path, record: Any) -> None:
    mine = tokenizer()
    pieces = TextReader(mine, 500).read([written(tmp_path, record, {"messages": CHAT[:2]})])
    whole = ("<user>one.<assistant>two.<user>three.<assistant>four.", "two.four.")
    assert sorted(said(pieces, mine)) == sorted([whole, ("<user>one.<assistant>two.", "two.")])


def test_a_template_that_writes_earlier_turns_otherwise_gives_a_text_for_each_turn(tmp_path: Path) -> None:
    mine = tokenizer(
        "{% for m in messages %}<{{ m.role }}>{% if not loop.last and m.role == 'assistant' %}-"
        "{% else %}{{ m.content }}{% endif %}."
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = said(TextReader(mine, 500).read([written(tmp_path, {"messages": CHAT})]), mine)
    turns = [("<user>one.<assistant>two.", "two."), ("<user>one.<assistant>-.<user>three.<assistant>four.", "four.")]
    assert sorted(found) == sorted(turns)


def test_without_a_template_conversations_are_plain_texts(tmp_path: Path) -> None:
    mine = tokenizer(None)
    line = {"prompt": "one", "completion": "two"}
    found = said(TextReader(mine, 500).read([written(tmp_path, line, {"messages": CHAT})]), mine)
    assert ("User: one\nAssistant: two\n", " two\n") in found


def test_lines_that_cannot_be_used_are_told_and_passed_over(tmp_path: Path) -> None:
    bad = ["{", "[]", {"a": 1}, {"messages": CHAT[:1]}, {"messages": [{"role": 3}, *CHAT]}, {"messages": 7}]
    path = written(tmp_path, *bad, {"messages": CHAT}, {"text": "a text of some length"})
    reader = TextReader(tokenizer(), 500)
    assert len(reader.read([path])) == 2
    assert reader.notes == [f"6 of 8 lines of {path} cannot be used (the first: line 1: it is no JSON)."]
    with pytest.raises(UsageError, match=r"no usable text.*6 of 6 lines.*line 1: it is no JSON"):
        TextReader(tokenizer(), 500).read([written(tmp_path, *bad)])


def test_files_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no UTF-8 text"):
        TextReader(tokenizer(), 9).read([tmp_path / "binary"])
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="no usable text"):
        TextReader(tokenizer(), 9).read([tmp_path / "empty"])
    with pytest.raises(UsageError, match="Cannot read"):
        TextReader(tokenizer(), 9).read([tmp_path])


@example([(7, False)], 5)
@given(st.lists(st.tuples(st.integers(3, 40), st.booleans()), min_size=1, max_size=8), st.integers(5, 16))
def test_there_is_something_to_learn_from_and_to_measure_with(lengths: list[tuple[int, bool]], longest: int) -> None:
    texts = [(list(range(length)), [True] * length, apart) for length, apart in lengths]
    if sum(length for length, _ in lengths) < 2 * 3:
        with pytest.raises(UsageError, match="too little"):
            cut(texts, longest)
        return
    pieces = cut(texts, longest)
    assert pieces.counted_tokens(False) > 0 and pieces.counted_tokens(True) > 0
    assert max(map(pieces.length, range(len(pieces)))) <= longest
    assert not any(bool(pieces.counted[pieces.part(piece)][:2].any()) for piece in range(len(pieces)))


def test_fewer_tokens_are_a_part_of_more(tmp_path: Path) -> None:
    texts = [([number] * (4 + number % 9), [True] * (4 + number % 9), number % 5 == 0) for number in range(60)]
    whole = cut(texts, 20)
    shuffled = cut(texts[::-1], 20)
    few, more = whole.limited(40, 20), whole.limited(120, 20)
    assert set(few.keys) < set(more.keys) < set(whole.keys) and set(shuffled.limited(40, 20).keys) == set(few.keys)
    assert 40 <= few.counted_tokens(False) < 60 and few.counted_tokens(True) < 40 < whole.counted_tokens(True)
    assert whole.limited(0, 0).digest == whole.digest != few.digest


def test_which_texts_are_kept_apart_depends_on_nothing_else(tmp_path: Path) -> None:
    records = [{"text": f"text number {number}"} for number in range(200)]
    mine = tokenizer()

    def apart(*some: Any) -> set[str]:
        pieces = TextReader(mine, 99).read([written(tmp_path, *some)])
        return {mine.decode(pieces.tokens[pieces.part(piece)]) for piece in pieces.chosen(True)}

    found = apart(*records)
    assert apart(*records[:150]) <= found and 0.3 * HELD_OUT < len(found) / 200 < 3 * HELD_OUT


def test_frequent_tokens_are_those_that_are_guessed() -> None:
    texts = [([9, 9, 5, 5, 7, 1], [False, False, True, True, True, False], False), ([3] * 9, [True] * 9, True)]
    assert cut(texts, 20).frequent(2).tolist() == [5, 7] and cut(texts, 20).frequent(4).tolist() == [0, 1, 5, 7]


def test_prompts_are_what_stands_before_the_first_answer(tmp_path: Path) -> None:
    mine = tokenizer()
    lines = [{"messages": CHAT}, {"prompt": "alone"}, {"messages": CHAT[1:]}, {"text": "0123456789"}]
    reader = PromptReader(mine, 60)
    assert [mine.decode(prompt) for prompt in reader.read([written(tmp_path, *lines)])] == [
        "<user>one.<assistant>", "<user>alone.<assistant>", "01234",
    ]  # fmt: skip
    assert "line 3: nothing is asked before" in reader.notes[0]
    with pytest.raises(UsageError, match="no prompt"):
        PromptReader(mine, 60).read([written(tmp_path, {"messages": CHAT[1:]})])


def test_lines_that_are_no_text_are_passed_over_and_told(tmp_path: Path) -> None:
    """Nothing is learned from characters that stand for others."""
    path = written(tmp_path, {"text": "A füll text. " * 9})
    path.write_bytes(path.read_bytes() + b'{"text": "torn \xff and no text at all, but for the first words"}\n')
    reader = TextReader(tokenizer(), 60)
    pieces = reader.read([path])
    assert reader.notes == [f"1 of 2 lines of {path} cannot be used (the first: line 2: it is no UTF-8 text)."]
    assert "torn" not in tokenizer().decode(pieces.tokens)
