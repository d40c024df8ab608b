"""A conversation: what it keeps, and how it goes on after a turn that failed."""

from pathlib import Path

from tests.frontends.conftest import Run
from tests.frontends.test_live import on_terminal

FIRST = "understudy: The chat template refuses the conversation."


def test_at_a_terminal_a_turn_that_fails_is_as_if_it_had_not_been_asked(tmp_path: Path) -> None:
    received = on_terminal(tmp_path, "chat", typed="refuse this\nhello\n/exit\n", UNDERSTUDY_FAKE="refusing")
    assert FIRST in received and "Traceback" not in received
    assert "1    with" in received.partition(FIRST)[2], "the next turn is the first message the model is shown"


def test_a_turn_that_does_not_fit_leaves_the_conversation_as_it_was(tmp_path: Path) -> None:
    received = on_terminal(tmp_path, "chat", typed="hello\ntoo long\nshort\n/exit\n", UNDERSTUDY_FAKE="full")
    before, _, after = received.partition("understudy: The conversation has 500 tokens. The conversation is as it was")
    assert "1    with" in before and "/reset" in after
    assert "3    with" in after, "the next turn follows the first one and its answer"


def test_at_a_terminal_a_line_can_be_edited_and_comes_back_with_the_arrow_up(tmp_path: Path) -> None:
    left = "\x1b[D"
    received = on_terminal(tmp_path, "chat", typed=f"refuse his{left * 3}t\nhello\n/exit\n", UNDERSTUDY_FAKE="refusing")
    assert received.count(FIRST) == 1
    received = on_terminal(tmp_path, "chat", typed="refuse this\n\x1b[A\n/exit\n", UNDERSTUDY_FAKE="refusing")
    assert received.count(FIRST) == 2


def test_in_a_pipe_a_turn_that_fails_ends_it(understudy: Run) -> None:
    done = understudy("chat", stdin="hello\nrefuse this\nhello\n", UNDERSTUDY_FAKE="refusing")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, FIRST)
    assert done.stdout.count("with") == 1, "what was answered before stays"


def test_a_template_that_can_never_be_used_is_told_before_anything_is_asked(tmp_path: Path, understudy: Run) -> None:
    received = on_terminal(tmp_path, "chat", typed="hello\n", UNDERSTUDY_FAKE="faulty")
    assert "understudy: The chat template is faulty." in received and "> " not in received
    assert understudy("chat", stdin="hello\n", UNDERSTUDY_FAKE="faulty").returncode == 1


def test_what_is_no_text_ends_it_in_one_line(understudy: Run, tmp_path: Path) -> None:
    done = understudy("chat", stdin="caf\udce9\n", PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 2 and "Standard input is not text in utf-8" in done.stderr and "Traceback" not in done.stderr


def test_a_system_prompt_stands_before_all_turns_and_outlives_a_reset(understudy: Run) -> None:
    done = understudy("chat", "--system", "Be brief.", stdin="one\ntwo\n/reset\nthree\n")
    assert [line[0] for line in done.stdout.splitlines()] == ["2", "4", "2"], "messages that the model is shown"
    plain = understudy("chat", stdin="one\ntwo\n/reset\nthree\n")
    assert [line[0] for line in plain.stdout.splitlines()] == ["1", "3", "1"]
