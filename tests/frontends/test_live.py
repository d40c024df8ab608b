"""The live line never mixes with the text, on whatever streams the two are."""

import io
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.frontends.conftest import FAKE, environment
from tests.frontends.fake import WORDS
from understudy.frontends.bench import names
from understudy.frontends.bench.prompts import TEXTS, mixed_lengths, mixed_prompts, prompts
from understudy.frontends.bench.rows import first_difference
from understudy.frontends.live import Live, Progress
from understudy.frontends.show import duration, rate, to_json

TEXT = "".join(WORDS)


def on_terminal(tmp_path: Path, *words: str, term: str = "xterm", typed: str = "", **more: str) -> str:
    """What a terminal that is stdin, stdout and stderr receives, its echo of what is `typed` included."""
    master, slave = pty.openpty()
    os.write(master, typed.encode())
    env = environment(tmp_path, TERM=term, **more)
    with subprocess.Popen([*FAKE, *words], stdin=slave, stdout=slave, stderr=slave, env=env):
        os.close(slave)
        received = b""
        while chunk := _read(master):
            received += chunk
    os.close(master)
    return received.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def screen(received: str) -> str:
    """The lines a terminal of endless width shows, for the few sequences the live line uses."""
    rows, row, column, saved = [""], 0, 0, (0, 0)
    for token in received.replace("\x1b[", "\x00").replace("\x1b", "\x00!").split("\x00"):
        text, command = token, ""
        if token[:1] == "!":
            command, text = token[:2], token[2:]
        elif token is not received and token[:1] in ("K", "J", "A", "B"):
            command, text = token[:1], token[1:]
        if command == "K":
            rows[row] = rows[row][:column]
        elif command == "J":
            rows[row:] = [rows[row][:column]]
        elif command == "A":
            row -= 1
        elif command in ("B", "!D"):
            row += 1
        elif command == "!7":
            saved = (row, column)
        elif command == "!8":
            row, column = saved
        rows += [""] * (row + 1 - len(rows))
        for character in text:
            if character == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif character == "\r":
                column = 0
            else:
                rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
                column += 1
    return "\n".join(rows)


def test_on_one_terminal_the_text_stays_whole(tmp_path: Path) -> None:
    received = on_terminal(tmp_path, "run", "demo", "x", "--max-new-tokens", "10")
    assert "10.0 tok/s" in received or "40.0 tok/s" in received
    assert "\x1bD" in received  # the line was drawn below the text
    assert screen(received).startswith(TEXT + "10 tokens in")


def test_a_dumb_terminal_gets_no_sequences(tmp_path: Path) -> None:
    received = on_terminal(tmp_path, "run", "demo", "x", "--max-new-tokens", "10", term="dumb")
    assert "\x1b" not in received and received.replace("\r", "").startswith(TEXT)


def test_in_one_file_the_summary_has_a_line_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [*FAKE, "run", "demo", "x", "--max-new-tokens", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(tmp_path),
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == WORDS[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.9, "9.9 s"), (61, "61 s"), (125, "2 min 05 s"), (3900, "1 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates_and_json() -> None:
    assert rate(1.31e9) == "1.31 GB/s" and rate(18e6) == "18 MB/s"
    assert to_json({"a": [float("nan"), (1, float("inf"))]}) == '{"a": [null, [1, null]]}'


class Letters:
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_the_time_left_is_that_of_the_pieces_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first piece of a stage kernels may be compiled, once."""
    moments = iter([0.0, 60.0, 70.0, 100.0])
    monkeypatch.setattr("understudy.frontends.live.time.monotonic", lambda: next(moments))
    stream = io.StringIO()
    progress = Progress(Live(stream=stream))
    for done in (0, 1, 2, 5):
        progress("calibrating", done, 10)
    assert stream.getvalue().splitlines()[-1] == "calibrating · 50% · 50 s left"
    assert [" left" in line for line in stream.getvalue().splitlines()] == [False, True, True]


@pytest.mark.parametrize("length", [1, 64, 5000])
def test_bench_prompts_have_their_length_and_end_where_their_text_ends(length: int) -> None:
    found = prompts(Letters(), len(TEXTS), length)
    assert all(len(ids) == length and chr(ids[-1]) == text[-1] for ids, text in zip(found, TEXTS, strict=True))
    assert found == prompts(Letters(), len(TEXTS), length)


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1], [1, 3]) == 1


def test_mixed_prompts_have_lengths_of_every_magnitude_and_no_two_end_alike() -> None:
    lengths = mixed_lengths(40, 512, 0)
    assert lengths == mixed_lengths(40, 512, 0) != mixed_lengths(40, 512, 1)
    assert 16 <= min(lengths) < 32 and 256 < max(lengths) <= 512 and mixed_lengths(3, 5, 0) == [5] * 3
    found = mixed_prompts(Letters(), lengths)
    assert [len(ids) for ids in found] == lengths
    assert len({tuple(ids[-16:]) for ids in found}) == len(found)


def test_methods_of_a_bench_keep_their_options() -> None:
    text = "none,substitute:width=6,suggest=eagle:HEAD,suggest_bits=4,eagle:HEAD,bits=16,ngram"
    assert names(text) == ["none", "substitute:width=6,suggest=eagle:HEAD,suggest_bits=4", "eagle:HEAD,bits=16", "ngram"]
