"""Every mistake is one line on stderr that says what to do, with its exit status, and nothing on stdout."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontends.conftest import Run, environment
from understudy.frontends import COMMANDS, main

MISTAKES = [
    (["rnu"], "Did you mean 'run'"),
    (["--frob"], "Known: batch, bench, chat, completion"),
    (["run", "--memroy", "8GiB"], "did you mean --memory?"),
    (["run", "--memory"], "expected one argument"),
    (["run", "--memory", "much"], "8GiB"),
    (["run", "--seed", "x"], "whole number"),
    (["run", "--context", "0"], "1 or more"),
    (["run", "--temperature", "hot"], "must be a number"),
    (["run", "--temperature", "-1", "demo", "x"], "temperature must be 0 or more"),
    (["run", "--top-p", "2", "demo", "x"], "top_p"),
    (["run", "--max-new-tokens", "0"], "1 or more"),
    (["run", "--dtype", "bflaot16"], "Did you mean bfloat16?"),
    (["run", "--resident", "all"], "auto, none, residual"),
    (["run", "--stop", "", "demo", "x"], "non-empty"),
    (["run", "--prompt-ids", "1,x"], "1,2,3"),
    (["run", "--prompt-ids", ""], "The prompt is empty"),
    (["run", "--prompt-file", "missing.txt"], "missing.txt: No such file"),
    (["run", "demo", ""], "The prompt is empty"),
    (["run", "demo", "x", "--prompt-ids", "1"], "one prompt"),
    (["run", "demo", "two", "words"], "quotes"),
    (["run", "demmo", "x"], "Did you mean 'demo'"),
    (["run", "def main():"], "understudy run demo 'PROMPT'"),
    (["run", "org/name"], "No prompt"),
    (["run", "./missing", "x"], "no directory ./missing"),
    (["plan", "/missing/also"], "Nor is there /missing"),
    (["chat", "demo", "hello"], "quotes"),
    (["prepare"], "MODEL"),
    (["export", "store"], "DIR"),
    (["bench", "--prompts", "0"], "1 or more"),
    (["bench", "--prompts", "99"], "at most"),
    (["bench", "--temperatures", "0,warm"], "must be a number"),
    (["bench", "--methods", ","], "none,ngram,substitute"),
    (["bench", "--batching", "ragged,eqspek"], "Did you mean 'eqspec'"),
    (["bench", "--batching", ","], "ragged,eqspec,exspec"),
    (["bench", "--batching", "exspec:batch=-1"], "a batch of 0 or more"),
    (["bench", "--batching", "ragged", "--rows", "0"], "1 or more"),
    (["bench", "--batching", "ragged", "--rows", "two"], "whole number"),
    (["bench", "--batching", "ragged", "--alone", "-1"], "0 or more"),
    (["bench", "--batching", "ragged", "--methods", "none,ngram"], "takes one method"),
    (["bench", "--batching", "ragged", "--plan"], "--plan makes no sense"),
    (["bench", "--rows", "4"], "--rows is for --batching"),
    (["bench", "--alone", "4"], "--alone is for --batching"),
    (["bench", "--reference", "--temperatures", "0.6"], "include 0 in --temperatures"),
    (["doctor", "--memory", "1GiB"], "--memory is for a model"),
    (["doctor", "--method", "none"], "--method is for a model"),
    (["scale", "--data", "x", "-o", "y", "--heads", "z", "--rate", "1"], "--rate is for heads that are trained"),
    (["scale", "--data", "x", "-o", "y", "--heads", "z", "--batch-tokens", "1"], "--batch-tokens is for heads"),
    (["batch", "in.jsonl"], "-o/--output"),
    (["batch", "-o", "out.jsonl"], "IN.jsonl"),
    (["batch", "missing.jsonl", "-o", "out.jsonl"], "missing.jsonl: No such file"),
    (["batch", "demo", "in.jsonl", "-o", "out.jsonl", "--window", "0"], "1 or more"),
    (["batch", "demo", "in.jsonl", "out.jsonl", "-o", "out.jsonl"], "one word too many"),
    (["plan", "--prompt-ids", "1"], "unknown option --prompt-ids"),
]


@pytest.mark.parametrize(
    ("words", "hint"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("understudy: ") and err.count("\n") == 1, err
    assert hint.lower() in err.lower()


def test_a_neighbour_directory_is_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama-small").mkdir()
    assert main(["run", str(tmp_path / "lama-small"), "x"]) == 2
    assert f"Did you mean {tmp_path / 'llama-small'}?" in capsys.readouterr().err


def test_a_file_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    assert main(["plan", str(tmp_path / "model.safetensors")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert all(f"  {name}" in capsys.readouterr().err for name in list(COMMANDS)[:1])


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: understudy {name}" in capsys.readouterr().out


def test_help_is_quick(command: Run) -> None:
    """Counted in processor time, since a busy machine would not tell."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(4):
        assert "understudy run" in command("--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4 * 0.3


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'numba', 'psutil', 'tokenizers'} & set(sys.modules)"
    program = f"import sys; from understudy.frontends import main; main(['--help']); assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, env=environment(tmp_path))


def test_version(command: Run) -> None:
    assert command("--version").stdout.startswith("understudy 0.")
