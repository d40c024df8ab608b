"""--config: a file says what a command line would, and the command line wins; a mistake in it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from understudy.errors import UsageError
from understudy.frontends import COMMANDS
from understudy.frontends.parser import Parser
from understudy.registry import find


def read(command: str, *words: str) -> dict[str, Any]:
    parser = Parser(command, "")
    find("command", COMMANDS, command).declare(parser)
    return vars(parser.read(list(words)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "options.toml"


def test_a_file_says_what_options_would(file: Path) -> None:
    file.write_text(
        'memory = "8GiB"\nrows = 3\nport = 9000\nno-page = true\nquiet = false\ndrain = 5\nrequest-timeout = 1.5\n'
        'model = ["a=/x", "b=/y"]\napi-key = "-k"\n'
    )
    found = read("serve", "--config", str(file))
    told = read("serve", "--memory=8GiB", "--rows=3", "--port=9000", "--no-page", "--drain=5", "--request-timeout=1.5",
                "--model=a=/x", "--model=b=/y", "--api-key=-k")  # fmt: skip
    assert found == {**told, "config": file}
    for command, more in (("run", ["demo", "x"]), ("chat", []), ("batch", ["in.jsonl", "-o", "out.jsonl"]), ("plan", [])):
        file.write_text('memory = "7GiB"\n')
        assert read(command, *more, "--config", str(file))["memory"] == "7GiB"


def test_the_command_line_wins(file: Path) -> None:
    file.write_text('memory = "8GiB"\nstop = ["a", "b"]\nseed = 1\ntop-k = 4\n')
    found = read("run", "--stop", "c", "--config", str(file), "--seed=2", "demo", "hello")
    assert (found["memory"], found["stop"], found["seed"], found["top_k"]) == ("8GiB", ["c"], 2, 4)
    assert (found["model"], found["prompt"]) == ("demo", "hello")


def test_a_plan_still_takes_the_directory_of_a_config(tmp_path: Path, file: Path) -> None:
    assert read("plan", "--config", str(tmp_path))["config"] == tmp_path
    file.write_text("context = 64\n")
    assert read("plan", "--config", str(file))["context"] == 64
    # what a command needs may stand there
    file.write_text('output = "out.jsonl"\n')
    assert read("batch", "in.jsonl", f"--config={file}")["output"] == Path("out.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("memroy = '8GiB'", "memroy is no option of this command. Did you mean memory?"),
        ("min_tokens = 3", "Did you mean min-tokens?"),
        ("config = 'x'", "config is no option"),
        ("rows = 'many'", "--rows"),
        ("rows = true", "must be a text or a number, not true or false"),
        ("rows = [1, 2]", "must be a text or a number, not a list"),
        ("no-page = 'yes'", "must be true or false, not a text"),
        ("model = [1, [2]]", "or a list of those, not a list"),
        ("[server]\nport = 1", "server is no option"),
        ("port 8000", "is not valid TOML"),
        ("device = 'gpu'", "--device cannot be 'gpu'"),
    ],
)
def test_a_mistake_is_one_line(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read("run" if "min" in content else "serve", "--config", str(file))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read("run", "--config", str(file))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read("run", "--config", str(tmp_path))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        read("run", "--config", str(file))
